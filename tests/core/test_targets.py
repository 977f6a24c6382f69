"""Targets: the lowest keep ratio that meets them, and the same one on every rank."""

import threading
from dataclasses import replace

import pytest
import torch
from helpers import generator, small_pool
from hypothesis import given
from hypothesis import strategies as st

from adakv_sglang import AdaKVConfig
from adakv_sglang.config import ALLOCATORS, LADDER
from adakv_sglang.core import WindowQueries, compress_prefix
from adakv_sglang.core.pipeline import ScorerExtras, score_prefix
from adakv_sglang.core.targets import agreed_step, at_step, first_step

LAYERS, HEADS, DIM, N = 2, 2, 8, 60
NONE = len(LADDER)


def problem(seed=0, peak=2.0):
    """Pool, queries, slots of the context, slots that may be owned, extras."""
    gen = generator(seed)
    pool = small_pool(LAYERS, 2 * N + 1, HEADS, DIM, gen=gen)
    queries = WindowQueries(torch.randn(LAYERS, 3, 2 * HEADS, DIM, generator=gen) * peak, (0.4,) * LAYERS)
    slots = torch.randperm(2 * N + 1, generator=gen)
    weights = torch.randn(LAYERS, 2 * HEADS, DIM, 12, generator=gen)
    return pool, queries, slots[:N], slots[N:], ScorerExtras(output_weight=lambda layer: weights[layer])


def settings(**given):
    return AdaKVConfig(**{"window": 3, "sinks": 1, "scorer": "snapkv", "pooling": "none", **given})


def first(given, config, **more):
    pool, queries, source, _, extras = given
    return first_step(list(score_prefix(queries, pool, source, config, extras)), config, **more)


def measured(given, config):
    """For every keep ratio of the ladder what a compression with it says of itself; None if it cannot be."""
    pool, queries, source, owned, extras = given
    found = []
    for ratio in LADDER:
        fixed = replace(config, keep_ratio=ratio, min_retained=None, max_bound=None, report_bound=True)
        if fixed.num_slots(N) < fixed.count_protected(N):
            found.append(None)
            continue
        prefix = compress_prefix(queries, pool, source, owned[: fixed.num_slots(N)], fixed, extras)
        found.append((prefix.mean_retained_mass, max(prefix.bound)))
    return found


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("scorer", ["snapkv", "keydiff", "critical"])
def test_it_is_the_lowest_ratio_whose_compression_meets_the_target(scorer, allocator):
    given, found = problem(), set()
    config = settings(scorer=scorer, allocator=allocator, protect=((7, 12),))
    have = measured(given, config)
    for retained in (0.01, 0.3, 0.6, 0.8, 0.9, 0.97, 0.999, 1.0):
        want = [i for i, each in enumerate(have) if each is not None and each[0] >= retained]
        step = first(given, replace(config, min_retained=retained))
        assert step == min(want, default=NONE)
        found.add(step)
    for bound in (1e-6, 1, 5, 20, 50, 100, 200, 1e6):
        want = [i for i, each in enumerate(have) if each is not None and each[1] <= bound]
        step = first(given, replace(config, max_bound=bound))
        assert step == min(want, default=NONE)
        found.add(step)
    assert len(found) > 4, "these targets were meant to differ"


@given(
    seed=st.integers(0, 2**16),
    peak=st.floats(0.1, 9),
    scorer=st.sampled_from(["snapkv", "keydiff", "random", "critical"]),
    allocator=st.sampled_from(ALLOCATORS),
    alpha=st.floats(0, 1),
    shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
)
def test_a_stricter_target_never_keeps_less(seed, peak, scorer, allocator, alpha, shares):
    given = problem(seed, peak)
    config = settings(scorer=scorer, allocator=allocator, alpha=alpha)
    loose, strict = (first(given, replace(config, min_retained=share)) for share in shares)
    assert loose <= strict
    strict, loose = (first(given, replace(config, max_bound=300 * share)) for share in shares)
    assert loose <= strict


def test_a_target_that_anything_meets_gives_the_first_ratio_that_holds_the_protected_tokens():
    given = problem()
    assert first(given, settings(min_retained=1e-6)) == LADDER.index(
        0.1
    )  # 6 slots; 0.05 are 3, too few for 4
    assert first(given, settings(min_retained=1e-6, protect=((10, 30),))) == LADDER.index(0.4)


def test_later_steps_are_found_from_where_one_looks():
    given, config = problem(), settings(min_retained=0.5)
    step = first(given, config)
    assert 1 < step < NONE - 3
    assert first(given, config, start=1) == first(given, config, start=step) == step
    assert first(given, config, start=step + 2) == step + 2
    assert first(given, config, start=NONE) == NONE


def test_of_a_bound_every_rank_may_have_its_equal_share():
    given = problem()
    assert first(given, settings(max_bound=60.0), num_ranks=2) == first(given, settings(max_bound=30.0))
    assert first(given, settings(max_bound=60.0)) < first(given, settings(max_bound=30.0)) < NONE


def test_a_step_is_a_keep_ratio_below_one_and_changes_nothing_else():
    config = at_step(settings(min_retained=0.5, keep_ratio=0.3), 6)
    assert config == settings(min_retained=0.5, keep_ratio=LADDER[6])
    assert tuple(sorted({*LADDER})) == LADDER and (LADDER[0], LADDER[-1]) == (0.05, 0.95)


class Ranks:
    """Threads for ranks: `most` waits for all of them and gives each the largest number."""

    def __init__(self, count):
        self._numbers, self._calls = [0] * count, [0] * count
        self._barrier = threading.Barrier(count, timeout=10)

    def most(self, rank):
        def agree(number):
            self._numbers[rank] = number
            self._calls[rank] += 1
            self._barrier.wait()
            largest = max(self._numbers)
            self._barrier.wait()
            return largest

        return agree

    def run(self, meeting):
        """Every rank's answer and number of calls; `meeting[rank]` are the steps that meet its target."""
        answers = [None] * len(meeting)

        def work(rank):
            def first(start):
                return min((step for step in meeting[rank] if step >= start), default=NONE)

            answers[rank] = agreed_step(first, self.most(rank))

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(meeting))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers, self._calls


@given(st.lists(st.sets(st.integers(0, NONE - 1)), min_size=1, max_size=4))
def test_ranks_agree_on_the_first_step_that_suits_all_and_ask_equally_often(meeting):
    """Also where a rank is met by one step and not by the next."""
    answers, calls = Ranks(len(meeting)).run(meeting)
    assert set(answers) == {min(set.intersection(*meeting), default=NONE)}
    assert len(set(calls)) == 1
