"""Scores and head budgets to kept tokens."""

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.ranking import top_first
from adakv_sglang.core.types import HeadBudgets, KeptTokens, Scores


def select_tokens(scores: Scores, budgets: HeadBudgets, config: AdaKVConfig) -> KeptTokens:
    """Keep each head's highest scores; sinks and window come first, inside the budget.

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
    kept = [top_first(row, budget).sort().values for row, budget in zip(value, budgets.tokens, strict=True)]
    mass = torch.stack([row[index].sum() for row, index in zip(scores.mass, kept, strict=True)])
    indptr = [0]
    for budget in budgets.tokens:
        indptr.append(indptr[-1] + budget)
    return KeptTokens(scores.layer, tuple(indptr), torch.cat(kept), mass.clamp(max=1.0))
