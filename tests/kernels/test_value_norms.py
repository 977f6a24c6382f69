"""`value_norms` against float64, from a pool that is NaN elsewhere; on CUDA too."""

import os

import pytest
import torch
from helpers import assert_close, scattered

from adakv_kernels import value_norms

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])  # numpy has no bfloat16
SHAPES = [(1, 1, 1, 16, 1), (2, 3, 127, 64, 129), (3, 1, 130, 24, 256), (1, 7, 200, 80, 40)]


def check(shape, dtype, device, tolerance, slot_dtype=torch.int64):
    """shape: KV heads, group, tokens, head size, hidden size. Weights as SGLang has them: `[hidden, HQ * D]`."""
    num_heads, group, num_tokens, head_dim, hidden = shape
    projection = torch.randn(hidden, num_heads * group * head_dim).to(dtype)
    weight = projection.t().view(num_heads * group, head_dim, hidden)
    value = torch.randn(num_tokens, num_heads, head_dim).to(dtype)
    pool, slots = scattered(value)
    norms = value_norms(
        pool.to(device),
        projection.to(device).t().view(weight.shape),
        slots=slots.to(slot_dtype).to(device),
    )
    of_query_heads = value.double().repeat_interleave(group, dim=1).transpose(0, 1)
    want = (of_query_heads @ weight.double()).abs().sum(dim=2)
    assert norms.dtype == torch.float32
    assert_close("norms", norms.cpu() / want.max(), want / want.max(), tolerance)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(shape, dtype):
    check(shape, dtype, torch.device("cpu"), 1e-6)


def test_slots_may_be_int32():
    check((2, 2, 50, 32, 64), torch.float32, torch.device("cpu"), 1e-6, torch.int32)


@pytest.mark.gpu
class TestOnCuda:
    """Products of 16-bit numbers are exact in float32."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("shape", [*SHAPES, (8, 4, 1000, 128, 4096), (2, 7, 300, 64, 896)], ids=str)
    def test_types_and_shapes(self, shape, dtype):
        check(shape, dtype, torch.device("cuda"), 1e-5)

    @pytest.mark.parametrize("head_dim", [96, 256])
    def test_head_sizes(self, head_dim):
        check((2, 2, 129, head_dim, 512), torch.bfloat16, torch.device("cuda"), 1e-5)

    def test_float32(self):
        check((2, 2, 129, 64, 512), torch.float32, torch.device("cuda"), 1e-5)


@pytest.mark.parametrize(
    ("value", "weight", "slots", "says"),
    [
        ((4, 2, 8), (3, 8, 5), 4, "query heads"),
        ((4, 2, 8), (4, 9, 5), 4, "weight"),
        ((4, 8), (4, 8, 5), 4, "value"),
    ],
)
def test_wrong_shapes_are_refused_in_words(value, weight, slots, says):
    with pytest.raises(ValueError, match=says):
        value_norms(torch.zeros(value), torch.zeros(weight), slots=torch.arange(slots))


def test_a_weight_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"weight: expected torch\.float32 like value, got torch\.bfloat16"):
        weight = torch.zeros(2, 8, 5, dtype=torch.bfloat16)
        value_norms(torch.zeros(4, 2, 8), weight, slots=torch.arange(4))
