"""How badly each key can be made of the others of its head."""

import torch

from adakv_kernels.checks import check_integer, check_shape
from adakv_kernels.key_leverage.reference import key_leverage_reference
from adakv_kernels.launch import use_triton
from adakv_kernels.rotary import Rotary


def key_leverage(
    key: torch.Tensor,
    rotary: Rotary,
    *,
    slots: torch.Tensor,
    sketch: torch.Tensor,
    inner: tuple[int, int],
    regularizer: float,
) -> torch.Tensor:
    """diag(X (X'X + regularizer)^-1 X') of the centred and projected keys X of each head.

    key: `[rows, H, D]` with positional encoding applied, D even, of which the rows `slots` (int32 or int64 `[N]`)
    are the tokens in order; token n has position n of `rotary`, whose table has at least N, on the same device. X:
    the keys before that encoding of the tokens from inner[0] to before inner[1], less their mean, times `sketch`,
    float32 `[H, D, S]`.
    Returns float32 `[H, inner[1] - inner[0]]`: values in [0, 1] whose sum over a head is at most S. On CUDA K is
    read twice, and temporaries hold 32 S^2 floats per head. Raises ValueError or TypeError for arguments that do
    not fit. Source: Compactor, arXiv 2507.08143.
    """
    check_shape("key", key, ("rows", "H", "D"))
    check_shape("slots", slots, ("N",))
    check_integer("slots", slots)
    check_shape("sketch", sketch, (key.shape[1], key.shape[2], "S"))
    if not 0 <= inner[0] < inner[1] <= slots.shape[0]:
        raise ValueError(f"inner: expected a range within 0 to {slots.shape[0]} tokens, got {inner}")
    if rotary.num_positions < slots.shape[0]:
        raise ValueError(f"rotary: expected {slots.shape[0]} positions or more, got {rotary.num_positions}")
    if sketch.dtype != torch.float32:
        raise TypeError(f"sketch: expected torch.float32, got {sketch.dtype}; convert it")
    if use_triton(key):
        from adakv_kernels.key_leverage.kernel import key_leverage_triton

        return key_leverage_triton(key, rotary, slots, sketch, inner, regularizer)
    return key_leverage_reference(key, rotary, slots, sketch, inner, regularizer)
