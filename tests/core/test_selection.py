"""`select_tokens`: which positions each head keeps."""

from dataclasses import replace

import pytest
import torch
from helpers import assert_close, generator, heads_of, random_scores
from hypothesis import given
from hypothesis import strategies as st

from adakv_sglang import AdaKVConfig
from adakv_sglang.core import HeadBudgets, Scores, select_tokens
from adakv_sglang.core.ranking import count_first


@st.composite
def problems(draw):
    """Scores, one budget per head (any from nothing to everything), settings."""
    config = AdaKVConfig(sinks=draw(st.integers(0, 4)), window=draw(st.integers(1, 6)))
    num_heads = draw(st.integers(1, 5))
    num_tokens = config.num_protected + draw(st.integers(0, 40))
    tokens = draw(st.lists(st.integers(0, num_tokens), min_size=num_heads, max_size=num_heads))
    gen = generator(draw(st.integers(0, 2**16)))
    levels = draw(st.sampled_from([None, 1, 4]))
    return random_scores(num_heads, num_tokens, gen, levels), HeadBudgets(0, tuple(tokens)), config


@given(problems())
def test_every_head_keeps_exactly_its_budget_in_ascending_order(problem):
    scores, budgets, config = problem
    kept = select_tokens(scores, budgets, config)
    heads = heads_of(kept)
    assert [len(head) for head in heads] == list(budgets.tokens)
    assert all(head == sorted(set(head)) for head in heads)
    assert kept.index.dtype == torch.int64
    assert kept.indptr[-1] == len(kept.index) == budgets.total


@given(problems())
def test_sinks_and_window_are_kept_before_anything_else(problem):
    scores, budgets, config = problem
    num_tokens = scores.value.shape[1]
    protected = {*range(config.sinks), *range(num_tokens - config.window, num_tokens)}
    for head, budget in zip(heads_of(select_tokens(scores, budgets, config)), budgets.tokens, strict=True):
        if budget >= len(protected):
            assert protected <= set(head)
        else:
            assert set(head) == set(sorted(protected)[:budget])


@given(problems())
def test_the_rest_are_the_highest_scores_and_the_lower_position_among_equals(problem):
    scores, budgets, config = problem
    last = scores.value.shape[1] - config.window
    heads = heads_of(select_tokens(scores, budgets, config))
    for row, head, budget in zip(scores.value.tolist(), heads, budgets.tokens, strict=True):
        ranking = sorted(range(config.sinks, last), key=lambda i: (-row[i], i))  # noqa: B023
        chosen = [i for i in head if config.sinks <= i < last]
        assert chosen == sorted(ranking[: max(0, budget - config.num_protected)])


@given(problems(), st.integers(0, 2**16))
def test_with_a_weight_the_second_half_is_ranked_by_the_weighted_score(problem, seed):
    scores, budgets, config = problem
    weight = torch.rand(scores.value.shape, generator=generator(seed)) * 10
    last = scores.value.shape[1] - config.window
    heads = heads_of(select_tokens(replace(scores, weight=weight), budgets, config))
    weighted = (scores.value + 1e-4) * weight
    for row, second, head, budget in zip(
        scores.value.tolist(), weighted.tolist(), heads, budgets.tokens, strict=True
    ):
        free = max(0, budget - config.num_protected)
        ranking = sorted(range(config.sinks, last), key=lambda i: (-row[i], i))  # noqa: B023
        rest = sorted(ranking[free // 2 :], key=lambda i: (-second[i], i))  # noqa: B023
        want = ranking[: free // 2] + rest[: free - free // 2]
        assert [i for i in head if config.sinks <= i < last] == sorted(want)
        assert len(head) == budget


@given(problems())
def test_equal_weights_change_nothing(problem):
    scores, budgets, config = problem
    weighted = replace(scores, weight=torch.full_like(scores.value, 2.0))
    assert heads_of(select_tokens(weighted, budgets, config)) == heads_of(
        select_tokens(scores, budgets, config)
    )


@given(problems())
def test_the_retained_mass_is_the_windows_attention_on_what_is_kept(problem):
    scores, budgets, config = problem
    kept = select_tokens(scores, budgets, config)
    rows = zip(scores.mass.double(), heads_of(kept), strict=True)
    want = torch.stack([row[head].sum() for row, head in rows])
    assert_close("retained mass", kept.retained_mass, want.clamp(max=1), 1e-6)
    assert (kept.retained_mass >= 0).all()
    assert (kept.retained_mass <= 1).all()


def test_keeping_all_retains_everything():
    scores = random_scores(3, 50)
    kept = select_tokens(scores, HeadBudgets(0, (50, 50, 50)), AdaKVConfig())
    assert heads_of(kept) == [list(range(50))] * 3
    assert_close("retained mass", kept.retained_mass, torch.ones(3), 1e-6)


def test_a_head_may_keep_nothing():
    kept = select_tokens(random_scores(3, 50), HeadBudgets(0, (0, 40, 0)), AdaKVConfig())
    assert kept.indptr == (0, 0, 40, 40)
    assert kept.retained_mass[[0, 2]].tolist() == [0.0, 0.0]


def test_all_heads_may_keep_nothing():
    kept = select_tokens(random_scores(2, 50), HeadBudgets(0, (0, 0)), AdaKVConfig())
    assert kept.index.numel() == 0
    assert kept.retained_mass.tolist() == [0.0, 0.0]


def test_the_scores_are_left_as_they_were():
    scores = random_scores(2, 50)
    before = scores.value.clone()
    select_tokens(scores, HeadBudgets(0, (40, 41)), AdaKVConfig())
    assert torch.equal(scores.value, before)


def test_equal_scores_keep_the_lower_positions():
    scores = Scores(0, torch.full((1, 20), 0.5), torch.full((1, 20), 0.05))
    kept = select_tokens(scores, HeadBudgets(0, (8,)), AdaKVConfig(sinks=1, window=3))
    assert heads_of(kept) == [[0, 1, 2, 3, 4, 17, 18, 19]]


@pytest.mark.parametrize("tokens", [(-1, 4), (51, 4)])
def test_a_budget_outside_the_tokens_is_refused(tokens):
    with pytest.raises(ValueError, match="budgets: expected 0 to 50 tokens per head, got"):
        select_tokens(random_scores(2, 50), HeadBudgets(0, tokens), AdaKVConfig())


def test_a_budget_for_another_number_of_heads_is_refused():
    with pytest.raises(ValueError, match="budgets: expected 2 heads, got 3"):
        select_tokens(random_scores(2, 50), HeadBudgets(0, (1, 2, 3)), AdaKVConfig())


@given(st.integers(1, 4), st.integers(0, 10), st.integers(0, 40), st.data())
def test_ranking_puts_higher_first_and_the_lower_index_first_among_equals(heads, tokens, count, data):
    size, level = heads * tokens, st.sampled_from([-3.0, -1.0, 0.0, 2.0, float("-inf")])
    values, count = data.draw(st.lists(level, min_size=size, max_size=size)), min(count, size)
    chosen = sorted(range(size), key=lambda i: (-values[i], i))[:count]
    want = [sum(i // tokens == head for i in chosen) for head in range(heads)]
    assert count_first(torch.tensor(values).view(heads, tokens), count) == want
