"""Budgets that move between layers: one ranking over all heads of all layers, and pyramids."""

from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from helpers import generator, random_scores
from hypothesis import given
from kvpress import PyramidKVPress

from adakv_sglang import AdaKVConfig
from adakv_sglang.core import Scores, allocate
from adakv_sglang.core.budgets import pyramid_slots

SETTINGS = {"allocator": "cross-layer", "window": 3, "sinks": 1}


def budgets(layers, num_slots, config):
    return [found.tokens for _, found in allocate(layers, len(layers), num_slots, config)]


def layers_of(num_layers, num_heads, num_tokens, seed):
    gen = generator(seed)
    scored = [random_scores(num_heads, num_tokens, gen=gen, skew=0.7) for _ in range(num_layers)]
    return [Scores(layer, each.value * 0.8**layer, each.mass) for layer, each in enumerate(scored)]


@given(
    num_layers=st.integers(1, 4),
    num_heads=st.integers(1, 4),
    num_tokens=st.integers(8, 60),
    share=st.floats(0, 1),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_the_sum_is_exact_and_no_head_gets_more_than_there_is(
    num_layers, num_heads, num_tokens, share, alpha, seed
):
    config = AdaKVConfig(alpha=alpha, **SETTINGS)
    num_slots = 4 + round(share * (num_tokens - 4))
    found = budgets(layers_of(num_layers, num_heads, num_tokens, seed), num_slots, config)
    assert sum(map(sum, found)) == num_layers * num_heads * num_slots
    assert all(4 <= tokens <= num_tokens for layer in found for tokens in layer)


def test_alpha_zero_keeps_the_best_of_all_layers():
    layers, config = layers_of(3, 2, 40, seed=1), AdaKVConfig(alpha=0.0, **SETTINGS)
    candidates = torch.stack([scores.value[:, 1:-3] for scores in layers])  # [L, H, n]
    border = candidates.flatten().sort(descending=True).values[3 * 2 * 10 - 1]
    want = [tuple(4 + count for count in layer) for layer in (candidates >= border).sum(dim=2).tolist()]
    assert budgets(layers, 14, config) == want
    assert len({sum(layer) for layer in want}) > 1, "these layers were meant to differ"


def test_alpha_one_is_uniform():
    found = budgets(layers_of(3, 2, 40, seed=2), 14, AdaKVConfig(alpha=1.0, **SETTINGS))
    assert found == [(14, 14)] * 3


def test_one_layer_gets_what_adakv_gives_it():
    layers = layers_of(1, 4, 50, seed=3)
    same = {name: AdaKVConfig(window=3, sinks=1, allocator=name) for name in ("adakv", "cross-layer")}
    assert budgets(layers, 20, same["adakv"]) == budgets(layers, 20, same["cross-layer"])


@given(
    num_layers=st.integers(1, 40),
    num_tokens=st.integers(4, 3000),
    share=st.floats(0, 1),
)
def test_a_pyramid_falls_in_equal_steps_and_has_the_exact_average(num_layers, num_tokens, share):
    config = AdaKVConfig(allocator="pyramid", window=3, sinks=1)
    num_slots = 4 + round(share * (num_tokens - 4))
    slots = pyramid_slots(num_layers, num_tokens, num_slots, config)
    assert sum(slots) == num_layers * num_slots
    assert all(4 <= count <= num_tokens for count in slots)
    steps = [before - after for before, after in zip(slots, slots[1:], strict=False)]
    assert not steps or max(steps) - min(steps) <= 2, "more than rounding"


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_a_pyramid_is_kvpress_pyramid_up_to_rounding(ratio):
    """kvpress counts the window beside its budget and has neither sinks nor exact sums."""
    num_layers, candidates = 30, 2000
    config = AdaKVConfig(allocator="pyramid", window=3, sinks=1)
    press = PyramidKVPress(1 - ratio * candidates / (candidates + 1), window_size=1)
    modules = [
        SimpleNamespace(layer_idx=layer, config=SimpleNamespace(num_hidden_layers=num_layers))
        for layer in range(num_layers)
    ]
    want = [press.get_layer_budget(module, candidates + 1) for module in modules]
    got = pyramid_slots(num_layers, candidates + 4, 4 + round(ratio * candidates), config)
    assert all(abs(ours - 4 - theirs) <= 1 for ours, theirs in zip(got, want, strict=True))


@pytest.mark.parametrize("allocator", ["adakv", "uniform", "pyramid", "ada-pyramid"])
def test_other_allocators_take_one_layer_at_a_time(allocator):
    seen = []

    def scored():
        for scores in layers_of(3, 2, 40, seed=4):
            seen.append(scores.layer)
            yield scores

    config = AdaKVConfig(window=3, sinks=1, allocator=allocator)
    for count, _ in enumerate(allocate(scored(), 3, 14, config), start=1):
        assert len(seen) == count
