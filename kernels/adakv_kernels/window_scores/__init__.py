"""Attention that the last tokens of a prefix pay to every token of it."""

import torch

from adakv_kernels.checks import check_groups, check_shape
from adakv_kernels.window_scores.reference import window_scores_reference


def window_scores(query: torch.Tensor, key: torch.Tensor, *, scaling: float) -> torch.Tensor:
    """Mean attention probability of the window queries on every key, per KV head.

    The window is the last W of the N tokens; a query sees keys up to its own position
    (SnapKV, arXiv 2404.14469, section 4; softmax over all keys as in the authors' code).

    query: `[W, HQ, D]`, with positional encoding applied. key: `[N, H, D]`, likewise; W <= N.
    scaling: factor on the dot products, usually D ** -0.5.
    Returns float32 `[H, N]`, mean over the window and over the query group; every row sums to 1.
    Raises ValueError for shapes that do not fit together.
    """
    check_shape("query", query, ("W", "HQ", "D"))
    check_shape("key", key, ("N", "H", query.shape[2]))
    check_groups(query.shape[1], key.shape[1])
    if not 1 <= query.shape[0] <= key.shape[0]:
        raise ValueError(f"window: expected 1 to {key.shape[0]} queries, got {query.shape[0]}")
    return window_scores_reference(query, key, scaling)
