"""`key_leverage` in Triton: one pass over the keys for mean and covariance, one for the lengths behind its root."""

from typing import Any

import torch
import triton
import triton.language as tl

from adakv_kernels.launch import head_block, shared_bytes
from adakv_kernels.rotary import Rotary

SPLITS = 32


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


@triton.jit
def _matrices(p_matrix, D: tl.constexpr, R: tl.constexpr, NEOX: tl.constexpr, S: tl.constexpr, HALF: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """Rows of a matrix `[D, S]` for both channels of every pair, `[HALF, BLOCK_S]` each."""
    o_a, o_b, m_pair = _pairs(D, R, NEOX, HALF)
    o_s = tl.arange(0, BLOCK_S)
    m = m_pair[:, None] & (o_s < S)[None, :]
    b_a = tl.load(p_matrix + o_a[:, None] * S + o_s[None, :], mask=m, other=0.0)
    return b_a, tl.load(p_matrix + o_b[:, None] * S + o_s[None, :], mask=m, other=0.0)


@triton.jit
def _projected(
    p_key, p_table, p_slots, p_matrix, o_n, reference, stop, stride_k, stride_t,
    D: tl.constexpr, R: tl.constexpr, NEOX: tl.constexpr, S: tl.constexpr, HALF: tl.constexpr,
    BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys before their encoding, less that of the token `reference`, times a matrix; float32 `[tokens, BLOCK_S]`.

    A key close to the mean: what all keys have in common costs no digits of what differs.
    """
    o_one = tl.zeros([1], tl.int32) + reference
    b_ra, b_rb = _unrotated(p_key, p_table, p_slots, o_one, stop, stride_k, stride_t, D, R, NEOX, HALF)
    b_a, b_b = _unrotated(p_key, p_table, p_slots, o_n, stop, stride_k, stride_t, D, R, NEOX, HALF)
    b_ma, b_mb = _matrices(p_matrix, D, R, NEOX, S, HALF, BLOCK_S)
    b_x = tl.dot(b_a - b_ra, b_ma, input_precision=PRECISION)
    return tl.dot(b_b - b_rb, b_mb, b_x, input_precision=PRECISION)


@triton.jit(do_not_specialize=["start", "stop", "reference"], do_not_specialize_on_alignment=["p_slots"])
def moments_kernel(
    p_key, p_table, p_slots, p_sketch, p_sum, p_gram, start, stop, reference, stride_k, stride_kh, stride_t,
    D: tl.constexpr, R: tl.constexpr, NEOX: tl.constexpr, S: tl.constexpr, HALF: tl.constexpr,
    BLOCK_S: tl.constexpr, PRECISION: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Sum of the projected keys of one head and of their products with each other, over one split of the tokens."""
    i_h, i_s = tl.program_id(0), tl.program_id(1)
    p_k, p_m = p_key + i_h * stride_kh, p_sketch + i_h * D * S
    per_split = tl.cdiv(tl.cdiv(stop - start, TOKENS), SPLITS) * TOKENS
    b_sum = tl.zeros([BLOCK_S], tl.float32)
    b_gram = tl.zeros([BLOCK_S, BLOCK_S], tl.float32)
    first = start + i_s * per_split
    for i_n in range(first, tl.minimum(first + per_split, stop), TOKENS):
        o_n = i_n + tl.arange(0, TOKENS)
        b_x = _projected(
            p_k, p_table, p_slots, p_m, o_n, reference, stop, stride_k, stride_t, D, R, NEOX, S, HALF, BLOCK_S,
            PRECISION,
        )  # fmt: skip
        b_x = tl.where((o_n < stop)[:, None], b_x, 0.0)
        b_sum += tl.sum(b_x, 0)
        b_gram = tl.dot(tl.trans(b_x), b_x, b_gram, input_precision=PRECISION)
    o_s = tl.arange(0, BLOCK_S)
    i_part = i_h * SPLITS + i_s
    tl.store(p_sum + i_part * BLOCK_S + o_s, b_sum)
    tl.store(p_gram + i_part * BLOCK_S * BLOCK_S + o_s[:, None] * BLOCK_S + o_s[None, :], b_gram)


@triton.jit(do_not_specialize=["start", "stop", "reference"], do_not_specialize_on_alignment=["p_slots"])
def leverage_kernel(
    p_key, p_table, p_slots, p_matrix, p_mean, p_out, start, stop, reference, stride_k, stride_kh, stride_t,
    D: tl.constexpr, R: tl.constexpr, NEOX: tl.constexpr, S: tl.constexpr, HALF: tl.constexpr,
    BLOCK_S: tl.constexpr, PRECISION: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Squared lengths of some tokens' keys of one head, less their mean, behind a matrix `[D, S]`."""
    i_h = tl.program_id(0)
    o_n = start + tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    p_k, p_m = p_key + i_h * stride_kh, p_matrix + i_h * D * S
    b_x = _projected(
        p_k,
        p_table,
        p_slots,
        p_m,
        o_n,
        reference,
        stop,
        stride_k,
        stride_t,
        D,
        R,
        NEOX,
        S,
        HALF,
        BLOCK_S,
        PRECISION,
    )
    o_s = tl.arange(0, BLOCK_S)
    b_x -= tl.load(p_mean + i_h * S + o_s, mask=o_s < S, other=0.0)[None, :]
    p_o = p_out + i_h.to(tl.int64) * (stop - start) + o_n - start
    tl.store(p_o, tl.sum(b_x * b_x, 1), mask=o_n < stop)


def key_leverage_triton(
    key: torch.Tensor,
    rotary: Rotary,
    slots: torch.Tensor,
    sketch: torch.Tensor,
    inner: tuple[int, int],
    regularizer: float,
) -> torch.Tensor:
    """See `key_leverage`."""
    table, sketch = rotary.cos_sin, sketch.contiguous()
    if key.stride(2) != 1 or table.stride(1) != 1:
        raise ValueError(
            f"key, rotary: expected contiguous last dimensions, got strides {key.stride()}, {table.stride()}"
        )
    sizes = _sizes(key, rotary, sketch)
    num_heads, size, block = len(sketch), sketch.shape[2], sizes["BLOCK_S"]
    sums = torch.empty(num_heads, SPLITS, block, dtype=torch.float32, device=key.device)
    grams = torch.empty(num_heads, SPLITS, block, block, dtype=torch.float32, device=key.device)
    (start, stop), reference = inner, sum(inner) // 2
    scalars = start, stop, reference, key.stride(0), key.stride(1), table.stride(0)
    moments_kernel[(num_heads, SPLITS)](
        key, table, slots, sketch, sums, grams, *scalars, **sizes, SPLITS=SPLITS
    )
    mean = sums.sum(dim=1, dtype=torch.float64)[:, :size] / (stop - start)
    gram = grams.sum(dim=1, dtype=torch.float64)[:, :size, :size]
    matrix, mean = _behind_root(gram, mean, stop - start, sketch, regularizer)
    out = torch.empty(num_heads, stop - start, dtype=torch.float32, device=key.device)
    blocks = triton.cdiv(stop - start, sizes["TOKENS"])
    leverage_kernel[(num_heads, blocks)](key, table, slots, matrix, mean, out, *scalars, **sizes)
    return out


def _behind_root(
    gram: torch.Tensor, mean: torch.Tensor, count: int, sketch: torch.Tensor, regularizer: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sketch and mean times the inverse root of the covariance: `[H, D, S]` and `[H, S]`, float32.

    gram, mean: float64, of `count` projected keys that are not centred.
    """
    identity = torch.eye(gram.shape[1], dtype=torch.float64, device=gram.device)
    gram = gram - count * mean.unsqueeze(2) * mean.unsqueeze(1) + regularizer * identity
    root = torch.linalg.cholesky_ex(gram).L
    inverse = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False).mT
    matrix, mean = sketch.double() @ inverse, mean.unsqueeze(1) @ inverse
    return matrix.float().contiguous(), mean.squeeze(1).float().contiguous()


def _sizes(key: torch.Tensor, rotary: Rotary, sketch: torch.Tensor) -> dict[str, Any]:
    """What both kernels are compiled for."""
    head_dim, channels = key.shape[2], rotary.cos_sin.shape[1]
    if head_dim % 2 or channels > head_dim:
        raise ValueError(
            f"key: expected an even head size that holds the {channels} channels which are turned, got {head_dim}"
        )
    # Products in three parts of TF32 numbers are as good as float32; their parts take shared memory: 128 KiB.
    tokens, precision = (64 if shared_bytes(key.device) > 160 * 1024 else 16), "tf32x3"
    if head_dim > 128:
        tokens, precision = 32, "ieee"
    return {
        "D": head_dim,
        "R": channels,
        "NEOX": rotary.is_neox,
        "S": sketch.shape[2],
        "HALF": head_block(head_dim // 2),
        "BLOCK_S": head_block(sketch.shape[2]),
        "TOKENS": tokens,
        "PRECISION": precision,
        "num_warps": 4,
        "num_stages": 1,
    }
