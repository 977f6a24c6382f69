"""How long each token's value is in a metric of its head."""

import torch

from adakv_kernels.checks import check_shape, check_tokens
from adakv_kernels.launch import use_triton
from adakv_kernels.value_lengths.reference import value_lengths_reference


def value_lengths(value: torch.Tensor, metric: torch.Tensor, *, slots: torch.Tensor) -> torch.Tensor:
    """sqrt(v M v') of every token's value v, M being its head's metric.

    value: `[rows, H, D]`, of which the rows `slots` (int32 or int64 `[N]`) are the tokens in order. metric: float32
    `[H, D, D]`, symmetric and positive semidefinite, as W W' for a projection W: then this is the L2 norm of v W,
    for D multiplications per channel of v instead of as many as W has columns.
    Returns float32 `[H, N]`. On CUDA nothing beside the result is in memory. Raises ValueError or TypeError for
    arguments that do not fit.
    """
    check_tokens("value", value, slots)
    check_shape("metric", metric, (value.shape[1], value.shape[2], value.shape[2]))
    if metric.dtype != torch.float32:
        raise TypeError(f"metric: expected torch.float32, got {metric.dtype}; convert it")
    if use_triton(value):
        from adakv_kernels.value_lengths.kernel import value_lengths_triton

        return value_lengths_triton(value, metric, slots)
    return value_lengths_reference(value, metric, slots)
