"""`copy_lanes_` in Triton: memory-bound, one row of the table per lane."""

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["p_source", "p_destination"])
def copy_lanes_kernel(
    p_kv,
    p_source,
    p_destination,
    n,
    value_offset,
    D: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Programs of the second grid axis move K (0) and V (1) of the same lanes."""
    o_n = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    offset = tl.program_id(1).to(tl.int64) * value_offset
    m_n = o_n < n
    o_d = tl.arange(0, BLOCK_D)
    m = m_n[:, None] & (o_d < D)[None, :]
    b_source = tl.load(p_source + o_n, mask=m_n, other=0).to(tl.int64) + offset
    b_destination = tl.load(p_destination + o_n, mask=m_n, other=0).to(tl.int64) + offset
    b = tl.load(p_kv + b_source[:, None] * D + o_d[None, :], mask=m, other=0)  # [LANES, BLOCK_D]
    tl.store(p_kv + b_destination[:, None] * D + o_d[None, :], b, mask=m)


def copy_lanes_triton_(
    kv: torch.Tensor, source: torch.Tensor, destination: torch.Tensor, value_offset: int
) -> None:
    """See `copy_lanes_`. Rows are moved as integers of the widest size that divides them: bytes, no arithmetic."""
    row_bytes = kv.shape[1] * kv.element_size()
    wide = next(
        dtype
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)
        if row_bytes % dtype.itemsize == 0
    )
    table = kv.view(wide)
    num_columns, lanes = table.shape[1], 32
    grid = (triton.cdiv(source.shape[0], lanes), 2)
    if source.shape[0] == 0:
        return
    copy_lanes_kernel[grid](
        table,
        source,
        destination,
        source.shape[0],
        value_offset,
        D=num_columns,
        LANES=lanes,
        BLOCK_D=1 << (num_columns - 1).bit_length(),
    )
