"""The snapkv scorer: pooled attention of the window, against the same computed position by position."""

import pytest
import torch
from helpers import assert_close, naive_attention, score_window

from adakv_sglang import AdaKVConfig

NUM_HEADS, GROUP, HEAD_DIM, SCALING = 2, 3, 16, 0.25


def inputs(window, num_tokens):
    query = torch.randn(window, NUM_HEADS * GROUP, HEAD_DIM) * 2
    return query, torch.randn(num_tokens, NUM_HEADS, HEAD_DIM)


def expected_mass(query, key):
    """Probabilities in float64, read off an attention whose values are the identity."""
    window, num_tokens = len(query), len(key)
    hidden = torch.ones(window, num_tokens, dtype=torch.bool).triu(num_tokens - window + 1)
    mass = torch.zeros(NUM_HEADS, num_tokens, dtype=torch.float64)
    for row in range(query.shape[1]):
        head, one_hot = row // GROUP, torch.eye(num_tokens)
        probability, _ = naive_attention(query[:, row], key[:, head], one_hot, SCALING, hidden)
        mass[head] += probability.mean(dim=0) / GROUP
    return mass


def pool_by_hand(row, pooling, kernel_size):
    """Smooth one list; the mean counts positions outside as zeros, the maximum does not see them."""
    half, smoothed = kernel_size // 2, []
    for i in range(len(row)):
        near = row[max(0, i - half) : i + half + 1]
        smoothed.append(max(near) if pooling == "max" else sum(near) / kernel_size)
    return row if pooling == "none" else smoothed


@pytest.mark.parametrize("kernel_size", [1, 5, 7, 101])
@pytest.mark.parametrize("pooling", ["max", "mean", "none"])
@pytest.mark.parametrize(("window", "num_tokens"), [(1, 2), (8, 9), (8, 64), (33, 111)])
def test_scores_are_the_pooled_attention_of_the_window(window, num_tokens, pooling, kernel_size):
    query, key = inputs(window, num_tokens)
    config = AdaKVConfig(scorer="snapkv", window=window, pooling=pooling, kernel_size=kernel_size)
    scores = score_window(3, query, key, SCALING, config)
    mass = expected_mass(query, key)
    before = [pool_by_hand(row.tolist(), pooling, kernel_size) for row in mass[:, : num_tokens - window]]
    assert scores.layer == 3
    assert_close("mass", scores.mass, mass, 1e-6)
    assert_close("before the window", scores.value[:, :-window], torch.tensor(before), 1e-6)


def test_the_windows_own_columns_stay_unpooled_and_do_not_leak():
    query, key = inputs(8, 40)
    scores = score_window(
        0, query, key, SCALING, AdaKVConfig(scorer="snapkv", window=8, pooling="max", kernel_size=7)
    )
    assert torch.equal(scores.value[:, -8:], scores.mass[:, -8:])
    highest_before = scores.mass[:, -8 - 4 : -8].amax(dim=1)
    assert torch.equal(scores.value[:, -9], highest_before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_mass_of_every_head_sums_to_one(dtype):
    query, key = inputs(32, 111)
    scores = score_window(0, query.to(dtype), key.to(dtype), SCALING, AdaKVConfig(scorer="snapkv"))
    assert scores.mass.dtype == scores.value.dtype == torch.float32
    assert_close("sums", scores.mass.sum(dim=1), torch.ones(NUM_HEADS), 1e-5)


def test_maximum_is_never_below_none_and_mean_never_above_maximum():
    query, key = inputs(8, 64)
    score = {
        pooling: score_window(
            0, query, key, SCALING, AdaKVConfig(scorer="snapkv", window=8, pooling=pooling)
        ).value
        for pooling in ("max", "mean", "none")
    }
    assert (score["max"] >= score["none"]).all()
    assert (score["max"] >= score["mean"] - 1e-7).all()


def test_without_pooling_the_scores_are_the_mass():
    query, key = inputs(8, 64)
    scores = score_window(0, query, key, SCALING, AdaKVConfig(scorer="snapkv", window=8, pooling="none"))
    assert torch.equal(scores.value, scores.mass)


def test_a_context_that_is_all_window_can_be_scored():
    query, key = inputs(8, 8)
    scores = score_window(0, query, key, SCALING, AdaKVConfig(scorer="snapkv", window=8))
    assert torch.equal(scores.value, scores.mass)
