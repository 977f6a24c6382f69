"""`value_lengths` against float64, from a pool that is NaN elsewhere; on CUDA too."""

import os
from importlib import import_module

import pytest
import torch
from helpers import assert_close, scattered

from adakv_kernels import value_lengths

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])  # numpy has no bfloat16
SHAPES = [(1, 1, 16), (3, 127, 80), (2, 130, 24), (1, 200, 64)]  # KV heads, tokens, head size


def check(shape, dtype, device, tolerance, slot_dtype=torch.int64):
    """The length behind a projection of 50 columns, by way of its product with itself."""
    num_heads, num_tokens, head_dim = shape
    projection = torch.randn(num_heads, head_dim, 50)
    value = torch.randn(num_tokens, num_heads, head_dim).to(dtype)
    pool, slots = scattered(value)
    metric = (projection @ projection.mT).to(device)
    got = value_lengths(pool.to(device), metric, slots=slots.to(slot_dtype).to(device))
    want = torch.einsum("nhd,hdm->hnm", value.double(), projection.double()).norm(dim=2)
    assert got.dtype == torch.float32
    assert_close("lengths", got.cpu() / want.max(), want / want.max(), tolerance)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(shape, dtype):
    check(shape, dtype, torch.device("cpu"), 1e-6)


def test_slots_may_be_int32():
    check((2, 50, 32), torch.float32, torch.device("cpu"), 1e-6, torch.int32)


def test_a_metric_that_is_zero_or_barely_not_gives_no_nan():
    value, slots = torch.randn(40, 2, 16), torch.arange(40)
    assert value_lengths(value, torch.zeros(2, 16, 16), slots=slots).eq(0).all()
    direction = torch.randn(2, 16, 1)
    assert value_lengths(value, direction @ direction.mT, slots=slots).isfinite().all()


def test_parts_make_no_difference(monkeypatch):
    value, slots, metric = torch.randn(50, 2, 16), torch.arange(50), torch.eye(16).expand(2, -1, -1)
    whole = value_lengths(value, metric, slots=slots)
    monkeypatch.setattr(import_module("adakv_kernels.value_lengths.reference"), "PART", 7)
    assert_close("in parts", value_lengths(value, metric, slots=slots), whole, 1e-6)


@pytest.mark.gpu
class TestOnCuda:
    """Products in three parts of tensor-core numbers: as good as float32."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("shape", [*SHAPES, (8, 5000, 128), (2, 1000, 256), (2, 300, 96)], ids=str)
    def test_types_and_shapes(self, shape, dtype):
        check(shape, dtype, torch.device("cuda"), 5e-6)


@pytest.mark.parametrize(
    ("value", "metric", "says"), [((4, 2, 8), (2, 8, 9), "metric"), ((4, 8), (2, 8, 8), "value")]
)
def test_wrong_shapes_are_refused_in_words(value, metric, says):
    with pytest.raises(ValueError, match=says):
        value_lengths(torch.zeros(value), torch.zeros(metric), slots=torch.arange(4))


def test_a_metric_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"metric: expected torch\.float32, got torch\.float64"):
        value_lengths(torch.zeros(4, 2, 8), torch.zeros(2, 8, 8).double(), slots=torch.arange(4))
