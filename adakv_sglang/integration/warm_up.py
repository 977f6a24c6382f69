"""Compiles kernels before the first request, so that none of them waits for it."""

from collections.abc import Iterable

import torch

from adakv_kernels import copy_lanes_, window_scores
from adakv_kernels.prefix_batch import PrefixTables, add_prefix_
from adakv_sglang.core.lanes import LanePool


def compile_attention(lanes: LanePool, tables: Iterable[PrefixTables]) -> None:
    """Launch the prefix attention of these tables on one row without a context; nothing is changed."""
    geometry = lanes.geometry
    for table in tables:
        table.clear()
        shape = (1, geometry.num_heads * table.query_group, geometry.head_dim)
        query = torch.zeros(shape, dtype=table.dtype, device=table.device)
        lse = torch.zeros(shape[:2], device=table.device)
        add_prefix_(
            *(torch.zeros_like(query), lse, query, lanes.kv, table),
            layer=0,
            value_offset=geometry.value_offset,
            scaling=1.0,
        )


def compile_compression(lanes: LanePool, query_group: int, dtype: torch.dtype, window: int) -> None:
    """Launch the kernels of a compression on the pool's padding slot, which is copied onto itself."""
    geometry, device = lanes.geometry, lanes.kv.device
    query = torch.zeros(
        window, geometry.num_heads * query_group, geometry.head_dim, dtype=dtype, device=device
    )
    padding = torch.zeros(window, dtype=torch.int64, device=device)
    window_scores(query, lanes.keys(0), scaling=1.0, slots=padding)
    lane = geometry.lanes(0, padding[:1], 0).to(torch.int32)
    copy_lanes_(lanes.kv, lane, lane, value_offset=geometry.value_offset)
