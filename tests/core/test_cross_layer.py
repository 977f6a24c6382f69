"""Budgets that move between layers: one ranking over all heads of all layers."""

import hypothesis.strategies as st
import pytest
import torch
from helpers import generator, random_scores
from hypothesis import given

from adakv_sglang import AdaKVConfig
from adakv_sglang.core import Scores, allocate

SETTINGS = {"allocator": "cross-layer", "window": 3, "sinks": 1}


def budgets(layers, num_slots, config):
    return [found.tokens for _, found in allocate(layers, num_slots, config)]


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


@pytest.mark.parametrize("allocator", ["adakv", "uniform"])
def test_other_allocators_take_one_layer_at_a_time(allocator):
    seen = []

    def scored():
        for scores in layers_of(3, 2, 40, seed=4):
            seen.append(scores.layer)
            yield scores

    config = AdaKVConfig(window=3, sinks=1, allocator=allocator)
    for count, _ in enumerate(allocate(scored(), 14, config), start=1):
        assert len(seen) == count
