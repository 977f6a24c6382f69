"""Window queries and keys to scores."""

import torch
from torch.nn.functional import avg_pool1d, max_pool1d

from adakv_kernels import window_scores
from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.types import Scores


def score_window(
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    config: AdaKVConfig,
    slots: torch.Tensor | None = None,
) -> Scores:
    """Score every token of a layer by the attention that the window pays to it.

    query: `[W, HQ, D]`, the last W tokens. key: `[N, H, D]`, or the pool's `[rows, H, D]` of which the rows
    `slots` `[N]` are the tokens. Softmax over all keys, mean over the window, mean or max over the query group,
    then pooling over the positions before the window (SnapKV, arXiv 2404.14469, section 4; Ada-KV,
    arXiv 2407.11550, as in the authors' code). The window's own scores stay unpooled; selection keeps those
    tokens in any case.
    """
    mass = window_scores(query, key, scaling=scaling, slots=slots)
    scores = mass
    if config.group_reduction == "max":
        scores = window_scores(query, key, scaling=scaling, slots=slots, reduction="max")
    before = scores[:, : scores.shape[1] - query.shape[0]]
    pooled = _pool(before, config.pooling, config.kernel_size)
    return Scores(layer, torch.cat([pooled, scores[:, before.shape[1] :]], dim=1), mass)


def _pool(scores: torch.Tensor, pooling: str, kernel_size: int) -> torch.Tensor:
    """Smooth `[H, n]` over positions; the mean counts the zero padding at the ends, as torch does."""
    if pooling == "none" or scores.shape[1] == 0:
        return scores
    pool = max_pool1d if pooling == "max" else avg_pool1d
    smoothed: torch.Tensor = pool(scores.unsqueeze(0), kernel_size, stride=1, padding=kernel_size // 2)
    return smoothed.squeeze(0)
