"""Lane addresses: where the host sees the same memory."""

import pytest
import torch
from helpers import by_place, small_pool

from adakv_sglang.core import LaneGeometry, LanePool


def test_every_lane_addresses_the_k_that_the_host_sees_and_its_v_one_offset_further():
    pool = small_pool(num_layers=3, rows=5, num_heads=2, head_dim=4)
    places = by_place(pool)
    slots = torch.tensor([4, 0, 3])
    for layer in range(3):
        for head in range(2):
            lanes = pool.geometry.lanes(layer, slots, head)
            assert torch.equal(pool.kv[lanes], places[layer, 0, slots, head])
            assert torch.equal(pool.kv[lanes + pool.geometry.value_offset], places[layer, 1, slots, head])


def test_the_lane_formula_is_the_documented_one():
    geometry = LaneGeometry(num_layers=3, rows=100, num_heads=8, head_dim=64)
    assert geometry.lanes(2, torch.tensor([7], dtype=torch.int32), 5).tolist() == [(2 * 2 * 100 + 7) * 8 + 5]
    assert geometry.lanes(0, torch.tensor([7]), 5).dtype == torch.int64
    assert geometry.value_offset == 100 * 8
    assert geometry.num_lanes == 3 * 2 * 100 * 8


def test_every_slot_may_have_a_head_of_its_own():
    geometry = LaneGeometry(2, 10, 4, 8)
    lanes = geometry.lanes(1, torch.tensor([3, 3, 9]), torch.tensor([0, 3, 1]))
    assert lanes.tolist() == [(20 + 3) * 4, (20 + 3) * 4 + 3, (20 + 9) * 4 + 1]


def test_owned_lanes_are_all_heads_of_all_layers_at_the_slots():
    geometry = LaneGeometry(num_layers=3, rows=10, num_heads=2, head_dim=8)
    slots = torch.tensor([9, 2])
    want = [geometry.lanes(layer, slots, head) for layer in range(3) for head in range(2)]
    owned = geometry.owned_lanes(slots)
    assert sorted(owned.tolist()) == sorted(torch.cat(want).tolist())
    assert owned.dtype == torch.int64


def test_the_keys_of_a_layer_are_a_view_as_the_host_has_them():
    pool = small_pool()
    keys = pool.keys(1)
    assert torch.equal(keys, by_place(pool)[1, 0])
    keys.zero_()
    assert (by_place(pool)[1, 0] == 0).all()


def test_a_pool_with_too_many_lanes_for_32_bits_is_refused_with_advice():
    LaneGeometry(num_layers=1, rows=2**29, num_heads=1, head_dim=1)
    LaneGeometry(num_layers=1, rows=2**30 - 1, num_heads=1, head_dim=1)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 lanes .* got 2147483648 .*--max-total-tokens"):
        LaneGeometry(num_layers=1, rows=2**30, num_heads=1, head_dim=1)


@pytest.mark.parametrize("shape", [(63, 4), (64, 8), (64, 1, 4)])
def test_memory_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"kv: expected shape \[64, 4\], got"):
        LanePool(torch.zeros(shape), LaneGeometry(2, 8, 2, 4))
