"""Scores and head budgets to kept tokens."""

from itertools import accumulate
from typing import Final

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.types import HeadBudgets, KeptTokens, Scores

EPSILON: Final = 1e-4  # added to the values before they are weighted


def select_tokens(scores: Scores, budgets: HeadBudgets, config: AdaKVConfig) -> KeptTokens:
    """Keep each head's highest scores; sinks and window come first, inside the budget. Ties go to the lower index.

    With a weight in two stages: half of what is left beside sinks and window (rounded down) by value, the rest
    by (value + 0.0001) * weight. Source: CriticalKV, arXiv 2502.03805, as in kvpress'
    CriticalAdaKVPress, which counts the window into the first half.
    Raises ValueError if a budget is negative or exceeds the number of tokens.
    """
    num_heads, num_tokens = scores.value.shape
    if len(budgets.tokens) != num_heads:
        raise ValueError(f"budgets: expected {num_heads} heads, got {len(budgets.tokens)}")
    if not all(0 <= budget <= num_tokens for budget in budgets.tokens):
        raise ValueError(f"budgets: expected 0 to {num_tokens} tokens per head, got {budgets.tokens}")
    protected = torch.zeros_like(scores.value, dtype=torch.bool)
    protected[:, : config.sinks] = True
    protected[:, num_tokens - config.window :] = True
    budget = torch.tensor(budgets.tokens, device=protected.device).unsqueeze(1)
    if scores.weight is None:
        kept = _highest(scores.value, protected, budget)
    else:
        left = (budget - config.num_protected).clamp_min(0)
        first = _highest(scores.value, protected, budget - (left - left // 2))
        kept = _highest((scores.value + EPSILON) * scores.weight, first, budget)
    mass = torch.where(kept, scores.mass, 0.0).sum(dim=1)
    indptr = (0, *accumulate(budgets.tokens))
    return KeptTokens(scores.layer, indptr, kept.nonzero()[:, 1], mass.clamp(max=1.0))


def _highest(value: torch.Tensor, before: torch.Tensor, budget: torch.Tensor) -> torch.Tensor:
    """Which `budget` `[H, 1]` tokens of each row of `value` `[H, N]` rank first, after those in `before`."""
    order = torch.sort(value.masked_fill(before, float("inf")), dim=1, descending=True, stable=True).indices
    first = torch.arange(value.shape[1], device=value.device) < budget  # [H, N], in the order of the scores
    return torch.zeros_like(first).scatter_(1, order, first)
