"""`suffix_attention` against torch's own attention in float64, and its lse against a loop."""

import pytest
import torch
from helpers import assert_close, naive_attention
from torch.nn.functional import scaled_dot_product_attention

from adakv_kernels import suffix_attention

SIZES = [(1, 1), (1, 64), (63, 63), (65, 65), (64, 65), (5, 111), (111, 111)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


def inputs(num_queries, num_keys, num_heads, group, head_dim, dtype):
    query = torch.randn(num_queries, num_heads * group, head_dim).to(dtype)
    key = torch.randn(num_keys, num_heads, head_dim).to(dtype)
    return query, key, torch.randn(num_keys, num_heads, head_dim).to(dtype)


def hidden_keys(num_queries, num_keys):
    """Query i stands at position num_keys - num_queries + i and sees nothing after it."""
    hidden = torch.zeros(num_queries, num_keys, dtype=torch.bool)
    for i in range(num_queries):
        hidden[i, num_keys - num_queries + i + 1 :] = True
    return hidden


def check(query, key, value, tolerance):
    scaling, hidden = query.shape[2] ** -0.5, hidden_keys(len(query), len(key))
    state = suffix_attention(query, key, value, scaling=scaling)
    heads_first = (t.double().transpose(0, 1) for t in (query, key, value))
    out = scaled_dot_product_attention(*heads_first, attn_mask=~hidden, scale=scaling, enable_gqa=True)
    assert state.out.dtype == state.lse.dtype == torch.float32
    assert_close("out", state.out, out.transpose(0, 1), tolerance)
    group = query.shape[1] // key.shape[1]
    for row in range(query.shape[1]):
        head = row // group
        _, lse = naive_attention(query[:, row], key[:, head], value[:, head], scaling, hidden)
        assert_close(f"lse of query head {row}", state.lse[:, row], lse, tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize(("num_queries", "num_keys"), SIZES)
def test_equals_causal_attention_at_the_last_positions(num_queries, num_keys, group, dtype):
    check(*inputs(num_queries, num_keys, 2, group, 64, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_equals_causal_attention_for_every_head_size(num_heads, head_dim):
    check(*inputs(7, 65, num_heads, 3, head_dim, torch.float32), 1e-5)


def test_keys_after_a_query_have_no_influence_at_all():
    query, key, value = inputs(4, 9, 2, 3, 64, torch.float32)
    before = suffix_attention(query, key, value, scaling=0.125)
    key[-1], value[-1] = 1e4, 1e4
    after = suffix_attention(query, key, value, scaling=0.125)
    assert torch.equal(before.out[:-1], after.out[:-1])
    assert torch.equal(before.lse[:-1], after.lse[:-1])


def test_views_that_are_not_contiguous_work():
    packed = torch.randn(9, 3 + 3 + 6, 64)
    key, value, query = packed.split([3, 3, 6], dim=1)
    check(query[-4:], key, value, 1e-5)


@pytest.mark.parametrize(
    ("query", "key", "value", "says"),
    [
        ((4, 64), (9, 2, 64), (9, 2, 64), "query: expected shape"),
        ((4, 6, 64), (9, 2, 32), (9, 2, 64), "key: expected shape"),
        ((4, 6, 64), (9, 2, 64), (8, 2, 64), "value: expected shape"),
        ((4, 6, 64), (9, 2, 64), (9, 2, 32), "value: expected shape"),
        ((4, 5, 64), (9, 2, 64), (9, 2, 64), "expected a multiple of the 2 KV heads, got 5"),
        ((10, 6, 64), (9, 2, 64), (9, 2, 64), "query: expected 1 to 9 tokens, got 10"),
        ((0, 6, 64), (9, 2, 64), (9, 2, 64), "query: expected 1 to 9 tokens, got 0"),
    ],
)
def test_wrong_shapes_are_refused_in_words(query, key, value, says):
    with pytest.raises(ValueError, match=says):
        suffix_attention(torch.zeros(query), torch.zeros(key), torch.zeros(value), scaling=1.0)
