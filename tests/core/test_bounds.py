"""The L1 bound: never below what a layer's output really loses, and reached where nothing cancels."""

import importlib
from dataclasses import replace

import pytest
import torch
from helpers import generator, heads_of, small_pool
from hypothesis import given
from hypothesis import strategies as st

from adakv_sglang import AdaKVConfig
from adakv_sglang.config import ALLOCATORS
from adakv_sglang.core import WindowQueries, allocate, compress_prefix, select_tokens
from adakv_sglang.core.pipeline import ScorerExtras, score_prefix

LAYERS, DIM, HIDDEN = 2, 8, 20
ROUNDING = 1e-4  # of the masses, which are float32
SCORERS = ("snapkv", "keydiff", "knorm", "streaming", "random", "critical", "defensive")


class Problem:
    """A context in a pool, the window's queries and the output projections of every layer."""

    def __init__(self, num_tokens, window, heads=2, group=2, peak=1.0, seed=0):
        gen = generator(seed)
        self.group, self.num_tokens, self.scaling = group, num_tokens, 0.4
        self.pool = small_pool(LAYERS, 2 * num_tokens + 3, heads, DIM, gen=gen)
        self.slots = torch.randperm(2 * num_tokens + 3, generator=gen)[:num_tokens]
        query = torch.randn(LAYERS, window, heads * group, DIM, generator=gen) * peak
        self.queries = WindowQueries(query, (self.scaling,) * LAYERS)
        self.weights = torch.randn(LAYERS, heads * group, DIM, HIDDEN, generator=gen)
        # heads and tokens that matter more than others
        self.weights *= 4 * torch.rand(LAYERS, heads * group, 1, 1, generator=gen)
        for layer in range(LAYERS):
            self.pool.values(layer).mul_(torch.rand(2 * num_tokens + 3, 1, 1, generator=gen) ** 3 * 9)

    @property
    def extras(self):
        return ScorerExtras(output_weight=lambda layer: self.weights[layer])

    def score(self, config, extras=None):
        return score_prefix(self.queries, self.pool, self.slots, config, extras or self.extras)

    def keep(self, config):
        """What every layer keeps."""
        num_slots = config.num_slots(self.num_tokens)
        for scores, budgets in allocate(self.score(config), LAYERS, num_slots, config):
            yield select_tokens(scores, budgets, config)

    def losses(self, kept):
        """By definition in float64: L1 change of the layer's output for every query of the window, `[W]`."""
        query = self.queries.query[kept.layer].double()
        key, value = (half(kept.layer)[self.slots].double() for half in (self.pool.keys, self.pool.values))
        window = len(query)
        later = torch.ones(window, self.num_tokens).triu(self.num_tokens - window + 1).bool()
        change = torch.zeros(window, HIDDEN).double()
        for row in range(query.shape[1]):
            head = row // self.group
            logits = (query[:, row] @ key[:, head].T * self.scaling).masked_fill(later, float("-inf"))
            dropped = torch.ones(self.num_tokens).bool()
            dropped[heads_of(kept)[head]] = False
            ours = logits.masked_fill(dropped, float("-inf")).softmax(dim=1)
            change += (logits.softmax(dim=1) - ours) @ value[:, head] @ self.weights[kept.layer, row].double()
        return change.abs().sum(dim=1)


@given(
    num_tokens=st.integers(12, 60),
    keep_ratio=st.floats(0.4, 1),
    heads=st.integers(1, 3),
    group=st.integers(1, 3),
    peak=st.sampled_from([0.1, 1.0, 5.0, 40.0]),
    allocator=st.sampled_from(ALLOCATORS),
    scorer=st.sampled_from(SCORERS),
    spans=st.sampled_from([(), ((2, 3),)]),
    seed=st.integers(0, 2**16),
)
def test_the_mean_loss_of_the_windows_queries_never_exceeds_the_bound(
    num_tokens, keep_ratio, heads, group, peak, allocator, scorer, spans, seed
):
    config = AdaKVConfig(
        keep_ratio=keep_ratio,
        allocator=allocator,
        scorer=scorer,
        window=3,
        sinks=1,
        protect=spans,
        report_bound=True,
    )
    problem = Problem(num_tokens, 3, heads, group, peak, seed)
    for kept in problem.keep(config):
        loss = problem.losses(kept)
        assert loss.mean().item() <= kept.bound * (1 + ROUNDING) + 1e-12
        assert loss.max().item() <= 3 * kept.bound * (1 + ROUNDING) + 1e-12


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_and_allocator_keeps_below_its_bound(scorer, allocator):
    config = AdaKVConfig(
        keep_ratio=0.3, scorer=scorer, allocator=allocator, window=8, sinks=2, report_bound=True
    )
    problem = Problem(200, 8, heads=3, group=3, peak=3.0)
    for kept in problem.keep(config):
        loss = problem.losses(kept).mean().item()
        assert 0 < loss <= kept.bound


@pytest.mark.parametrize("group", [1, 3])
def test_values_that_all_push_the_same_way_reach_the_bound(group):
    """Kept tokens push every output up by as much as dropped ones push it down: nothing cancels."""
    config = AdaKVConfig(keep_ratio=0.5, scorer="streaming", window=4, sinks=1, report_bound=True)
    problem = Problem(60, 4, heads=2, group=group)
    problem.weights[:] = 0.5
    for kept in list(problem.keep(config)):
        values = problem.pool.values(kept.layer)
        values[:] = -2.0
        for head, tokens in enumerate(heads_of(kept)):
            values[problem.slots[tokens], head] = 2.0
    for kept in problem.keep(config):  # streaming looks at no values: the same tokens as before
        assert kept.bound == pytest.approx(problem.losses(kept).mean().item(), rel=1e-5)


def test_the_bound_is_the_formula_of_the_paper():
    """2 h C - 2 C * sum of retained mass, over the query heads, C their largest value behind W_O in L1."""
    config = AdaKVConfig(window=4, sinks=1, report_bound=True)
    problem = Problem(60, 4, heads=2, group=3)
    for kept in problem.keep(config):
        value = problem.pool.values(kept.layer)[problem.slots].double()
        norms = torch.stack(
            [
                (value[:, row // 3] @ problem.weights[kept.layer, row].double()).abs().sum(1)
                for row in range(6)
            ]
        )
        largest = norms.max().item()
        retained = 3 * kept.retained_mass.double().sum().item()  # every query head has its KV head's
        assert kept.bound == pytest.approx(2 * 6 * largest - 2 * largest * retained, rel=1e-5)


def test_the_bound_of_a_long_context_is_that_of_its_parts(monkeypatch):
    config, problem = AdaKVConfig(window=4, sinks=1, report_bound=True), Problem(60, 4)
    whole = [kept.bound for kept in problem.keep(config)]
    monkeypatch.setattr(importlib.import_module("adakv_kernels.value_norms.reference"), "PART", 7)
    assert [kept.bound for kept in problem.keep(config)] == pytest.approx(whole, rel=1e-6)


def test_products_that_are_rounded_to_16_bits_are_counted_upwards():
    """The largest value of all is behind W_O a little more than what bfloat16 makes of it."""
    problem = Problem(60, 4, heads=1, group=1)
    problem.pool.kv.zero_()
    for layer in range(LAYERS):
        problem.pool.values(layer)[problem.slots[7], 0, 0] = 1 + 2**-7
    problem.weights[:] = 1 + 2**-7  # their product, 1 + 2**-6 + 2**-14, loses its last bit
    problem.pool = replace(problem.pool, kv=problem.pool.kv.bfloat16())
    problem.queries = replace(problem.queries, query=problem.queries.query.bfloat16())
    config = AdaKVConfig(window=4, sinks=1, report_bound=True)
    for scores in problem.score(config):
        assert scores.loss_rate >= 2 * HIDDEN * (1 + 2**-7) ** 2


def test_keeping_everything_loses_nothing_and_its_bound_is_zero():
    config, problem = AdaKVConfig(keep_ratio=1.0, window=4, report_bound=True), Problem(60, 4)
    assert [kept.bound for kept in problem.keep(config)] == [0.0] * LAYERS


def compressed(problem, config, extras=None):
    free = torch.tensor(sorted({*range(2 * problem.num_tokens + 3)} - {*problem.slots.tolist()}))
    owned = free[: config.num_slots(problem.num_tokens)]
    return compress_prefix(
        problem.queries, problem.pool, problem.slots, owned, config, extras or problem.extras
    )


def test_a_compressed_prefix_has_a_bound_per_layer_if_it_is_wanted():
    config, problem = AdaKVConfig(window=4, sinks=1, report_bound=True), Problem(60, 4)
    want = tuple(kept.bound for kept in problem.keep(config))
    prefix = compressed(problem, config)
    assert prefix.bound == want and len(set(want)) == LAYERS
    assert prefix.retained_mass_per_layer == tuple(sum(layer) / 2 for layer in prefix.retained_mass)
    assert compressed(problem, replace(config, report_bound=False)).bound is None


@pytest.mark.parametrize(
    "extras",
    [
        lambda problem: ScorerExtras(),
        lambda problem: replace(problem.extras, is_projection_whole=False),
        lambda problem: ScorerExtras(output_weight=lambda layer: problem.weights[0] if layer == 0 else None),
    ],
    ids=["none", "adapted", "only of one layer"],
)
def test_without_the_whole_projection_there_is_no_bound_and_a_target_on_it_is_refused(extras):
    config, problem = AdaKVConfig(window=4, sinks=1, report_bound=True), Problem(60, 4)
    prefix = compressed(problem, config, extras(problem))
    assert prefix.bound is None and all(0 < mass < 1 for mass in prefix.retained_mass_per_layer)
    with pytest.raises(ValueError, match=r"max_bound: expected a plain output projection in layer \d"):
        list(problem.score(replace(config, max_bound=1.0), extras(problem)))
