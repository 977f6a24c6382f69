"""Scores and head budgets to kept tokens."""

from itertools import accumulate

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.types import HeadBudgets, KeptTokens, Scores


def select_tokens(scores: Scores, budgets: HeadBudgets, config: AdaKVConfig) -> KeptTokens:
    """Keep each head's highest scores; sinks and window come first, inside the budget. Ties go to the lower index.

    Raises ValueError if a budget is negative or exceeds the number of tokens.
    """
    num_heads, num_tokens = scores.value.shape
    if len(budgets.tokens) != num_heads:
        raise ValueError(f"budgets: expected {num_heads} heads, got {len(budgets.tokens)}")
    if not all(0 <= budget <= num_tokens for budget in budgets.tokens):
        raise ValueError(f"budgets: expected 0 to {num_tokens} tokens per head, got {budgets.tokens}")
    value = scores.value.clone()
    value[:, : config.sinks] = float("inf")
    value[:, num_tokens - config.window :] = float("inf")
    order = torch.sort(value, dim=1, descending=True, stable=True).indices
    budget = torch.tensor(budgets.tokens, device=value.device).unsqueeze(1)
    first = torch.arange(num_tokens, device=value.device) < budget  # [H, N], in the order of the scores
    kept = torch.zeros_like(first).scatter_(1, order, first)
    mass = torch.where(kept, scores.mass, 0.0).sum(dim=1)
    indptr = (0, *accumulate(budgets.tokens))
    return KeptTokens(scores.layer, indptr, kept.nonzero()[:, 1], mass.clamp(max=1.0))
