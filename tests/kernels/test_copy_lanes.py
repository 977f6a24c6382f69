"""`copy_lanes_` moves bytes, and no others."""

import pytest
import torch

from adakv_kernels import copy_lanes_

AS_INTEGER = {4: torch.int32, 2: torch.int16, 1: torch.uint8}
OFFSET = 200


def random_bits(shape, dtype):
    """Any bit pattern, NaN and denormals included."""
    size = dtype.itemsize
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8).view(dtype)


def bits(tensor):
    return tensor.view(AS_INTEGER[tensor.dtype.itemsize])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("num_copies", [0, 1, 63, 64, 65, 100])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_keys_and_values_arrive_bit_for_bit_and_all_else_stays(
    head_dim, num_copies, dtype, index_dtype, device
):
    kv = random_bits((2 * OFFSET, head_dim), dtype)
    order = torch.randperm(OFFSET)
    source, destination = order[:num_copies], order[OFFSET - num_copies :]
    want = bits(kv).clone()
    for a, b in zip(source.tolist(), destination.tolist(), strict=True):
        want[b], want[b + OFFSET] = want[a].clone(), want[a + OFFSET].clone()
    moved = kv.to(device)
    lists = (lanes.to(index_dtype).to(device) for lanes in (source, destination))
    copy_lanes_(moved, *lists, value_offset=OFFSET)
    assert torch.equal(bits(moved.cpu()), want)


@pytest.mark.gpu
def test_addresses_beyond_two_to_the_31st_element_are_right():
    """The pool of a large GPU holds more elements than 32 bits address."""
    lanes = 2**25
    kv = torch.zeros(lanes, 128, dtype=torch.bfloat16, device="cuda")
    kv[lanes // 2 - 1], kv[lanes - 1] = 3, 5
    copy_lanes_(
        kv,
        torch.tensor([lanes // 2 - 1], device="cuda"),
        torch.tensor([7], device="cuda"),
        value_offset=lanes // 2,
    )
    assert (kv[7] == 3).all() and (kv[7 + lanes // 2] == 5).all()


def test_one_lane_may_be_read_twice():
    kv = torch.randn(8, 64)
    want = kv.clone()
    want[[1, 2]], want[[5, 6]] = want[0].clone(), want[4].clone()
    copy_lanes_(kv, torch.tensor([0, 0]), torch.tensor([1, 2]), value_offset=4)
    assert torch.equal(kv, want)


def test_the_two_index_lists_may_have_different_types():
    kv = torch.randn(8, 64)
    copy_lanes_(kv, torch.tensor([0], dtype=torch.int32), torch.tensor([3]), value_offset=4)
    assert torch.equal(kv[3], kv[0])
    assert torch.equal(kv[7], kv[4])


def test_a_view_of_the_pool_is_written_in_place():
    pool = torch.randn(2, 4, 1, 64)
    copy_lanes_(pool.view(8, 64), torch.tensor([1]), torch.tensor([2]), value_offset=4)
    assert torch.equal(pool[:, 2], pool[:, 1])


@pytest.mark.parametrize(
    ("kv", "source", "destination", "error", "says"),
    [
        ((8, 1, 64), torch.tensor([0]), torch.tensor([1]), ValueError, "kv: expected shape"),
        ((8, 64), torch.tensor([0]), torch.tensor([1, 2]), ValueError, r"destination: expected shape \[1\]"),
        (
            (8, 64),
            torch.tensor([0, 1]),
            torch.tensor([[2, 3]]),
            ValueError,
            r"destination: expected shape \[2\]",
        ),
        ((8, 64), torch.tensor([0.0]), torch.tensor([1]), TypeError, "source: expected int32 or int64"),
        ((8, 64), torch.tensor([0]), torch.tensor([True]), TypeError, "destination: expected int32 or int64"),
    ],
)
def test_wrong_arguments_are_refused_in_words_before_anything_moves(kv, source, destination, error, says):
    pool = torch.randn(kv)
    before = pool.clone()
    with pytest.raises(error, match=says):
        copy_lanes_(pool, source, destination, value_offset=4)
    assert torch.equal(pool, before)
