"""The projection of `key_leverage` in Triton: keys are read once, and their encoding undone on the way."""

import torch
import triton
import triton.language as tl

from adakv_kernels.launch import head_block
from adakv_kernels.rotary import Rotary

TOKENS = 64


@triton.jit
def _pairs(D: tl.constexpr, R: tl.constexpr, NEOX: tl.constexpr, HALF: tl.constexpr):
    """First and second channels of the pairs that are turned together, and whether there is such a pair; `[HALF]`.

    Channels from R on are not turned; they are paired anyhow.
    """
    o = tl.arange(0, HALF)
    if NEOX:
        o_a = tl.where(o < R // 2, o, o + R // 2)
        o_b = tl.where(o < R // 2, o + R // 2, o + D // 2)
    else:
        o_a, o_b = 2 * o, 2 * o + 1
    return o_a, o_b, o < D // 2


@triton.jit
def _unrotated(
    p_key, p_table, p_slots, o_n, stop, stride_k, stride_t,
    D: tl.constexpr, R: tl.constexpr, NEOX: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Both channels of every pair of the tokens o_n before their encoding, float32 `[tokens, HALF]`, 0 from stop on."""
    o_a, o_b, m_pair = _pairs(D, R, NEOX, HALF)
    m_n = o_n < stop
    m = m_n[:, None] & m_pair[None, :]
    b_slot = tl.load(p_slots + o_n, mask=m_n, other=0).to(tl.int64)
    p_k = p_key + b_slot[:, None] * stride_k
    b_a = tl.load(p_k + o_a[None, :], mask=m, other=0.0).to(tl.float32)
    b_b = tl.load(p_k + o_b[None, :], mask=m, other=0.0).to(tl.float32)
    o_r = tl.arange(0, HALF)
    p_t = p_table + o_n.to(tl.int64)[:, None] * stride_t + o_r[None, :]
    m_turned = m_n[:, None] & (o_r < R // 2)[None, :]
    b_cos = tl.load(p_t, mask=m_turned, other=1.0).to(tl.float32)
    b_sin = tl.load(p_t + R // 2, mask=m_turned, other=0.0).to(tl.float32)
    b_scale = b_cos * b_cos + b_sin * b_sin
    return (b_a * b_cos + b_b * b_sin) / b_scale, (b_b * b_cos - b_a * b_sin) / b_scale


@triton.jit(do_not_specialize=["start", "stop", "middle"], do_not_specialize_on_alignment=["p_slots"])
def project_kernel(
    p_key, p_table, p_slots, p_sketch, p_out, start, stop, middle, stride_k, stride_kh, stride_t,
    D: tl.constexpr, R: tl.constexpr, NEOX: tl.constexpr, S: tl.constexpr, HALF: tl.constexpr,
    BLOCK_S: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Keys of some tokens of one head before their encoding, less that of the token `middle`, times the sketch."""
    i_h = tl.program_id(0)
    o_n = start + tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    p_k = p_key + i_h * stride_kh
    o_one = tl.zeros([1], tl.int32) + middle
    b_ca, b_cb = _unrotated(p_k, p_table, p_slots, o_one, stop, stride_k, stride_t, D, R, NEOX, HALF)
    b_a, b_b = _unrotated(p_k, p_table, p_slots, o_n, stop, stride_k, stride_t, D, R, NEOX, HALF)
    o_a, o_b, m_pair = _pairs(D, R, NEOX, HALF)
    o_s = tl.arange(0, BLOCK_S)
    m_s = o_s < S
    p_m = p_sketch + i_h * D * S + o_s[None, :]
    b_ma = tl.load(p_m + o_a[:, None] * S, mask=m_pair[:, None] & m_s[None, :], other=0.0)
    b_mb = tl.load(p_m + o_b[:, None] * S, mask=m_pair[:, None] & m_s[None, :], other=0.0)
    # Three products of TF32 parts are as good as one of float32.
    b_x = tl.dot(b_a - b_ca, b_ma, input_precision="tf32x3")
    b_x = tl.dot(b_b - b_cb, b_mb, b_x, input_precision="tf32x3")
    o_row = i_h.to(tl.int64) * (stop - start) + o_n - start
    tl.store(p_out + o_row[:, None] * S + o_s[None, :], b_x, mask=(o_n < stop)[:, None] & m_s[None, :])


def projected_triton(
    key: torch.Tensor, rotary: Rotary, slots: torch.Tensor, sketch: torch.Tensor, inner: tuple[int, int]
) -> torch.Tensor:
    """See `projected_reference`."""
    table, (start, stop), (num_heads, head_dim, size) = rotary.cos_sin, inner, sketch.shape
    if key.stride(2) != 1 or table.stride(1) != 1:
        raise ValueError(
            f"key, rotary: expected contiguous last dimensions, got strides {key.stride()}, {table.stride()}"
        )
    out = torch.empty(num_heads, stop - start, size, dtype=torch.float32, device=key.device)
    project_kernel[(num_heads, triton.cdiv(stop - start, TOKENS))](
        *(key, table, slots.contiguous(), sketch.contiguous(), out, start, stop, sum(inner) // 2),
        *(key.stride(0), key.stride(1), table.stride(0)),
        D=head_dim,
        R=table.shape[1],
        NEOX=rotary.is_neox,
        S=size,
        HALF=head_block(head_dim // 2),
        BLOCK_S=head_block(size),
        TOKENS=TOKENS,
        num_warps=4,
        num_stages=1,
    )
    return out
