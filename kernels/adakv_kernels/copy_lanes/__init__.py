"""Moves K and V of single heads from lane to lane of the pool."""

import torch

from adakv_kernels.checks import check_integer, check_shape
from adakv_kernels.copy_lanes.reference import copy_lanes_reference_
from adakv_kernels.launch import use_triton


def copy_lanes_(
    kv: torch.Tensor, source: torch.Tensor, destination: torch.Tensor, *, value_offset: int
) -> None:
    """Copy lane `source[i]` onto lane `destination[i]`, K and V, in place in `kv`.

    kv: `[num_lanes, D]`, every layer's K and V of the pool as one table (any dtype; bytes are moved).
    source, destination: int32 or int64 `[n]`, K lanes; V lies `value_offset` lanes further.
    No lane may be written twice or be both read and written in one call (not checked: it would cost a sort).
    Raises ValueError or TypeError for wrong shapes or index types.
    """
    check_shape("kv", kv, ("num_lanes", "D"))
    check_integer("source", source)
    check_integer("destination", destination)
    check_shape("source", source, ("n",))
    check_shape("destination", destination, (source.shape[0],))
    if use_triton(kv):
        from adakv_kernels.copy_lanes.kernel import copy_lanes_triton_

        copy_lanes_triton_(kv, source, destination, value_offset)
        return
    copy_lanes_reference_(kv, source, destination, value_offset)
