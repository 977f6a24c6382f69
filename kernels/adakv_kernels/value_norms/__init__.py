"""How much each token's value weighs behind the output projection."""

import torch

from adakv_kernels.checks import check_groups, check_shape, check_tokens
from adakv_kernels.launch import use_triton
from adakv_kernels.value_norms.reference import value_norms_reference


def value_norms(value: torch.Tensor, weight: torch.Tensor, *, slots: torch.Tensor) -> torch.Tensor:
    """L1 norm of every token's value behind the part of the output projection that each query head feeds.

    value: `[rows, H, D]`, of which the rows `slots` (int32 or int64 `[N]`) are the tokens in order. weight:
    `[HQ, D, M]`, any strides; query head q reads KV head q // (HQ / H). Returns float32 `[HQ, N]`.
    Products are added up in float32, nothing rounded before; on CUDA nothing of size N x M is ever in memory. Raises ValueError or TypeError for arguments that do not fit.
    Source: CriticalKV, arXiv 2502.03805, and the constant C of Ada-KV's bound, arXiv 2407.11550, theorem 3.1.
    """
    check_tokens("value", value, slots)
    check_shape("weight", weight, ("HQ", value.shape[2], "M"))
    check_groups(weight.shape[0], value.shape[1])
    if weight.dtype != value.dtype:
        raise TypeError(f"weight: expected {value.dtype} like value, got {weight.dtype}; convert one of them")
    if use_triton(value):
        from adakv_kernels.value_norms.kernel import value_norms_triton

        return value_norms_triton(value, weight, slots)
    return value_norms_reference(value, weight, slots)
