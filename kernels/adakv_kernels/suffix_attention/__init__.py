"""Attention of a request's new tokens over its own, uncompressed tokens."""

import torch

from adakv_kernels.attention_state import AttentionState
from adakv_kernels.checks import check_groups, check_shape
from adakv_kernels.suffix_attention.reference import suffix_attention_reference


def suffix_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float
) -> AttentionState:
    """Causal attention; the T queries stand at the last T of the S positions.

    query: `[T, HQ, D]`. key, value: `[S, H, D]`, 1 <= T <= S.
    Returns the state over the keys that each query may see. Raises ValueError for wrong shapes.
    """
    check_shape("query", query, ("T", "HQ", "D"))
    check_shape("key", key, ("S", "H", query.shape[2]))
    check_shape("value", value, tuple(key.shape))
    check_groups(query.shape[1], key.shape[1])
    if not 1 <= query.shape[0] <= key.shape[0]:
        raise ValueError(f"query: expected 1 to {key.shape[0]} tokens, got {query.shape[0]}")
    return suffix_attention_reference(query, key, value, scaling)
