"""`window_scores` against probabilities computed one query at a time in float64; on CUDA too, from a NaN pool."""

import importlib
import os

import pytest
import torch
from helpers import assert_close, scattered

from adakv_kernels import window_scores
from adakv_kernels.window_scores.reference import window_scores_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])  # numpy has no bfloat16
SIZES = [(1, 1), (1, 64), (63, 65), (32, 111), (64, 64), (65, 200)]


def expected(query, key, scaling, reduction="mean"):
    """One query at a time: softmax over the keys up to its own position, mean over the window, then the group."""
    (window, num_q_heads, _), (num_tokens, num_kv_heads, _) = query.shape, key.shape
    group = num_q_heads // num_kv_heads
    scores = torch.zeros(num_kv_heads, group, num_tokens, dtype=torch.float64)
    peaks = torch.zeros(num_kv_heads, num_tokens, dtype=torch.float64)
    for row in range(window):
        visible = num_tokens - window + row + 1
        for head in range(num_q_heads):
            logits = key[:visible, head // group].double() @ query[row, head].double() * scaling
            weight = torch.exp(logits - logits.max())
            scores[head // group, head % group, :visible] += weight / weight.sum() / window
            peak = peaks[head // group, :visible]
            torch.maximum(peak, weight / weight.sum(), out=peak)
    if reduction == "peak":
        return peaks
    return scores.mean(1) if reduction == "mean" else scores.amax(1)


def check(window, num_tokens, num_heads, group, head_dim, dtype):
    query = torch.randn(window, num_heads * group, head_dim).to(dtype)
    key = torch.randn(num_tokens, num_heads, head_dim).to(dtype)
    scores = window_scores(query, key, scaling=head_dim**-0.5)
    assert scores.dtype == torch.float32
    assert_close("scores", scores, expected(query, key, head_dim**-0.5), 1e-6)
    assert_close("sum of a row", scores.sum(dim=1), torch.ones(num_heads), 1e-5)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize(("window", "num_tokens"), SIZES)
def test_equals_the_mean_probability_over_window_and_group(window, num_tokens, group, dtype):
    check(window, num_tokens, 2, group, 64, dtype)


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_equals_it_for_every_head_size(num_heads, head_dim):
    check(5, 65, num_heads, 3, head_dim, torch.float32)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize(("window", "num_tokens"), SIZES)
def test_the_largest_of_the_query_heads_counts_on_request(window, num_tokens, group, dtype):
    check_paged(window, num_tokens, 2, group, 64, dtype, torch.device("cpu"), 1e-6, reduction="max")


@pytest.mark.parametrize(
    ("window", "num_tokens", "group"), [(1, 1, 1), (63, 65, 3), (32, 111, 8), (65, 200, 3)]
)
def test_the_peak_counts_on_request(window, num_tokens, group):
    check_paged(window, num_tokens, 2, group, 64, torch.float32, torch.device("cpu"), 1e-6, reduction="peak")


@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64], ids=str)
def test_tokens_may_lie_anywhere_among_rows_that_are_nan(slot_dtype):
    check_paged(32, 111, 2, 4, 64, torch.float32, torch.device("cpu"), 1e-6, slot_dtype)


@pytest.mark.parametrize("reduction", ["mean", "max", "peak"])
@pytest.mark.parametrize("num_scored", [1, 64, 110])
def test_only_the_first_tokens_on_request(num_scored, reduction):
    query, key = torch.randn(5, 6, 64), torch.randn(111, 2, 64)
    whole = window_scores(query, key, scaling=0.125, reduction=reduction)
    part = window_scores(query, key, scaling=0.125, reduction=reduction, num_scored=num_scored)
    assert torch.equal(part, whole[:, :num_scored])


@pytest.mark.parametrize("reduction", ["mean", "max", "peak"])
def test_many_queries_need_no_splits_of_the_keys(reduction, monkeypatch):
    if INTERPRETED:
        kernel = importlib.import_module("adakv_kernels.window_scores.kernel")
        monkeypatch.setattr(kernel, "MANY_TILES", 1)
    check_paged(65, 200, 2, 3, 64, torch.float32, torch.device("cpu"), 1e-6, reduction=reduction)


@pytest.mark.gpu
class TestOnCuda:
    """bf16 and fp16 products are exact in float32; float32 ones are rounded to TF32 first."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("group", [1, 3, 8, 16])
    @pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
    def test_types_groups_and_head_sizes(self, head_dim, group, dtype):
        check_paged(32, 200, 2, group, head_dim, dtype, torch.device("cuda"), 1e-5)

    @pytest.mark.parametrize(("window", "num_tokens"), [*SIZES, (32, 4097), (1, 1025), (1024, 1024)])
    def test_sizes_around_every_edge(self, window, num_tokens):
        check_paged(window, num_tokens, 2, 4, 128, torch.bfloat16, torch.device("cuda"), 1e-5)

    @pytest.mark.parametrize("group", [1, 3, 8, 16])
    @pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
    @pytest.mark.parametrize("reduction", ["max", "peak"])
    def test_the_largest(self, head_dim, group, reduction):
        device = torch.device("cuda")
        check_paged(65, 200, 2, group, head_dim, torch.bfloat16, device, 1e-5, reduction=reduction)

    @pytest.mark.parametrize(("num_heads", "group", "head_dim"), [(8, 4, 128), (2, 7, 64), (1, 16, 256)])
    def test_thousands_of_queries(self, num_heads, group, head_dim):
        query = torch.randn(2078, num_heads * group, head_dim, dtype=torch.bfloat16, device="cuda")
        key = torch.randn(4130, num_heads, head_dim, dtype=torch.bfloat16, device="cuda")
        scores = window_scores(query, key, scaling=head_dim**-0.5, reduction="peak", num_scored=2052)
        want = window_scores_reference(query, key, head_dim**-0.5, "peak")[:, :2052]
        assert_close("scores", scores, want, 1e-4)

    def test_float32(self):
        check_paged(32, 200, 2, 4, 128, torch.float32, torch.device("cuda"), 2e-3)


def check_paged(
    window,
    num_tokens,
    num_heads,
    group,
    head_dim,
    dtype,
    device,
    tolerance,
    slot_dtype=torch.int64,
    reduction="mean",
):
    """Tokens on scattered rows of a pool that is NaN elsewhere, row 0 included."""
    query = torch.randn(window, num_heads * group, head_dim).to(dtype)
    key = torch.randn(num_tokens, num_heads, head_dim).to(dtype)
    pool, slots = scattered(key)
    scores = window_scores(
        query.to(device),
        pool.to(device),
        scaling=head_dim**-0.5,
        slots=slots.to(slot_dtype).to(device),
        reduction=reduction,
    )
    assert_close("scores", scores.cpu(), expected(query, key, head_dim**-0.5, reduction), tolerance)


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
