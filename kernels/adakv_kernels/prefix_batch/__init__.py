"""Adds the compressed contexts of a whole batch to its suffix states: decode and extend alike."""

import math

import torch

from adakv_kernels.checks import check_shape
from adakv_kernels.prefix_batch.layout import BatchLayout, lay_out_batch
from adakv_kernels.prefix_batch.tables import PrefixTables

__all__ = ["BatchLayout", "PrefixTables", "add_prefix_", "lay_out_batch"]


def add_prefix_(
    out: torch.Tensor,
    lse_base2: torch.Tensor,
    query: torch.Tensor,
    kv: torch.Tensor,
    tables: PrefixTables,
    *,
    layer: int,
    value_offset: int,
    scaling: float,
) -> None:
    """Merge, in place, the attention over each row's context into the state that it has so far.

    Two launches with a fixed grid, no host synchronisation, safe to capture in a CUDA graph. Rows that share
    a context are computed together, so that each kept lane is read once for up to `tables.tokens_per_tile`
    of them. Rows without a context are left as they are.

    out: `[T, HQ, D]`, bf16, fp16 or float32. lse_base2: float32 `[T, HQ]`, base 2 as FlashInfer gives it.
    query: `[T, HQ, D]`. kv: `[num_lanes, D]`, same type as query. tables: of this batch; T rows at most.
    Raises ValueError for shapes that do not fit the tables. Source: two-level attention merged by LSE,
    as in cascade inference; the equal division of the key axis follows Stream-K (arXiv 2301.03598).
    """
    key, rows, t = _layout_of(out, lse_base2, query, kv, value_offset), query.shape[0], tables
    if key not in t.checked or not rows == out.shape[0] == lse_base2.shape[0] <= t.max_rows:
        _check(out, lse_base2, query, kv, tables)
        t.checked.add(key)
    if not 0 <= layer < t.num_layers:
        raise ValueError(f"layer: expected 0 to {t.num_layers - 1}, got {layer}")
    work = (*t.work_of_layer[layer], t.tile_head, t.tile_first, t.tile_count, t.tokens)
    pieces_of_rows = (t.row_tile, t.row_stride, t.row_place, *t.pieces_of_layer[layer])
    pieces, strides = (t.piece_out, t.piece_lse), (out.stride(0), out.stride(1), lse_base2.stride(0))
    scales = (value_offset, scaling / math.log(2.0), query.stride(0), query.stride(1))
    t.attend((t.programs, 1, 1), key, out, lse_base2, query, kv, *work, *pieces, *scales, *strides)
    t.merge((rows, query.shape[1], 1), key, out, lse_base2, *pieces_of_rows, *pieces, *strides)


def _layout_of(
    out: torch.Tensor, lse_base2: torch.Tensor, query: torch.Tensor, kv: torch.Tensor, value_offset: int
) -> tuple[object, ...]:
    """What the checks and the compiled kernels depend on, whatever the number of rows."""
    layouts = [
        (tensor.dtype, tensor.shape[1:], tensor.stride(), tensor.data_ptr() % 16 == 0)
        for tensor in (out, lse_base2, query, kv)
    ]
    return value_offset, *layouts


def _check(
    out: torch.Tensor,
    lse_base2: torch.Tensor,
    query: torch.Tensor,
    kv: torch.Tensor,
    tables: PrefixTables,
) -> None:
    num_heads, group, head_dim = tables.num_heads, tables.query_group, tables.head_dim
    check_shape("query", query, ("T", num_heads * group, head_dim))
    check_shape("out", out, tuple(query.shape))
    check_shape("lse_base2", lse_base2, tuple(query.shape[:2]))
    check_shape("kv", kv, ("num_lanes", head_dim))
    if query.shape[0] > tables.max_rows:
        raise ValueError(f"query: expected at most {tables.max_rows} rows, got {query.shape[0]}")
    if query.stride(2) != 1 or out.stride(2) != 1 or lse_base2.stride(1) != 1 or not kv.is_contiguous():
        raise ValueError("query, out, lse_base2, kv: expected a contiguous last dimension")
