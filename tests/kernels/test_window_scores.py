"""`window_scores` against probabilities computed one query at a time in float64."""

import pytest
import torch
from helpers import assert_close

from adakv_kernels import window_scores

SIZES = [(1, 1), (1, 64), (63, 65), (32, 111), (64, 64), (65, 200)]


def expected(query, key, scaling):
    """One query at a time: softmax over the keys up to its own position, then the mean."""
    (window, num_q_heads, _), (num_tokens, num_kv_heads, _) = query.shape, key.shape
    group = num_q_heads // num_kv_heads
    scores = torch.zeros(num_kv_heads, num_tokens, dtype=torch.float64)
    for row in range(window):
        visible = num_tokens - window + row + 1
        for head in range(num_q_heads):
            logits = key[:visible, head // group].double() @ query[row, head].double() * scaling
            weight = torch.exp(logits - logits.max())
            scores[head // group, :visible] += weight / weight.sum() / (window * group)
    return scores


def check(window, num_tokens, num_heads, group, head_dim, dtype):
    query = torch.randn(window, num_heads * group, head_dim).to(dtype)
    key = torch.randn(num_tokens, num_heads, head_dim).to(dtype)
    scores = window_scores(query, key, scaling=head_dim**-0.5)
    assert scores.dtype == torch.float32
    assert_close("scores", scores, expected(query, key, head_dim**-0.5), 1e-6)
    assert_close("sum of a row", scores.sum(dim=1), torch.ones(num_heads), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize(("window", "num_tokens"), SIZES)
def test_equals_the_mean_probability_over_window_and_group(window, num_tokens, group, dtype):
    check(window, num_tokens, 2, group, 64, dtype)


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_equals_it_for_every_head_size(num_heads, head_dim):
    check(5, 65, num_heads, 3, head_dim, torch.float32)


def test_queries_without_preference_spread_over_all_that_they_see():
    scores = window_scores(torch.zeros(2, 1, 64), torch.randn(4, 1, 64), scaling=1.0)
    both, last = (1 / 3 + 1 / 4) / 2, 1 / 4 / 2
    assert_close("scores", scores, torch.tensor([[both, both, both, last]]), 1e-7)


@pytest.mark.parametrize(
    ("query", "key", "says"),
    [
        ((4, 64), (9, 2, 64), "query: expected shape"),
        ((4, 6, 64), (9, 2, 32), "key: expected shape"),
        ((4, 6, 64), (9, 64), "key: expected shape"),
        ((4, 5, 64), (9, 2, 64), "expected a multiple of the 2 KV heads, got 5"),
        ((10, 6, 64), (9, 2, 64), "window: expected 1 to 9 queries, got 10"),
        ((0, 6, 64), (9, 2, 64), "window: expected 1 to 9 queries, got 0"),
    ],
)
def test_wrong_shapes_are_refused_in_words(query, key, says):
    with pytest.raises(ValueError, match=says):
        window_scores(torch.zeros(query), torch.zeros(key), scaling=1.0)
