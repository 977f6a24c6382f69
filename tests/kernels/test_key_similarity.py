"""`key_similarity` against float64, from a pool that is NaN elsewhere; on CUDA too."""

import os
from importlib import import_module

import pytest
import torch
from helpers import assert_close, scattered

from adakv_kernels import key_similarity

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])  # numpy has no bfloat16
SHAPES = [(1, 1, 16), (3, 64, 80), (2, 65, 24), (1, 2100, 64)]  # KV heads, tokens, head size


def check(shape, dtype, device, tolerance, slot_dtype=torch.int64):
    num_heads, num_tokens, head_dim = shape
    common = torch.randn(num_heads, head_dim)
    key = (common + torch.randn(num_tokens, num_heads, head_dim)).to(dtype)
    pool, slots = scattered(key)
    got = key_similarity(pool.to(device), slots=slots.to(slot_dtype).to(device))
    direction = torch.nn.functional.normalize(key.double(), dim=2)
    anchor = torch.nn.functional.normalize(direction.sum(dim=0), dim=1)
    assert got.dtype == torch.float32
    assert_close("similarity", got.cpu(), (direction * anchor).sum(dim=2).T, tolerance)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(shape, dtype):
    check(shape, dtype, torch.device("cpu"), 1e-6)


def test_slots_may_be_int32():
    check((2, 50, 32), torch.float32, torch.device("cpu"), 1e-6, torch.int32)


def test_keys_of_zeros_are_like_nothing():
    key = torch.randn(40, 2, 16)
    key[7], key[:, 1] = 0.0, 0.0
    got = key_similarity(key, slots=torch.arange(40))
    assert got[0, 7] == 0 and got[1].eq(0).all() and got.isfinite().all()


def test_parts_make_no_difference(monkeypatch):
    key, slots = torch.randn(50, 2, 16), torch.arange(50)
    whole = key_similarity(key, slots=slots)
    monkeypatch.setattr(import_module("adakv_kernels.key_similarity.reference"), "PART", 7)
    assert_close("in parts", key_similarity(key, slots=slots), whole, 1e-6)


@pytest.mark.gpu
class TestOnCuda:
    """Other sums, the same numbers."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("shape", [*SHAPES, (8, 32768, 128), (2, 5000, 256), (4, 70000, 64)], ids=str)
    def test_types_and_shapes(self, shape, dtype):
        check(shape, dtype, torch.device("cuda"), 2e-6)


@pytest.mark.parametrize(
    ("key", "slots", "says"), [((4, 8), 4, "key"), ((4, 2, 8), 0, "slots: expected at least one token")]
)
def test_wrong_shapes_are_refused_in_words(key, slots, says):
    with pytest.raises(ValueError, match=says):
        key_similarity(torch.zeros(key), slots=torch.arange(slots))
