"""Scores to head budgets: how many tokens each head of a layer keeps."""

from collections.abc import Callable
from fractions import Fraction
from typing import Final

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.ranking import top_first
from adakv_sglang.core.types import HeadBudgets, Scores


def allocate_budgets(scores: Scores, num_slots: int, config: AdaKVConfig) -> HeadBudgets:
    """Distribute one layer's `num_slots` per head over its heads.

    Every head keeps the sinks and the window; the allocator named in `config` divides the rest.
    The sum is exactly `H * num_slots`. Raises ValueError if `num_slots` cannot hold the protected
    tokens or exceeds the number of tokens.
    """
    num_heads, num_tokens = scores.value.shape
    protected = config.num_protected
    if not protected <= num_slots <= num_tokens:
        raise ValueError(f"num_slots: expected {protected} to {num_tokens}, got {num_slots}")
    candidates = scores.value[:, config.sinks : num_tokens - config.window]
    free = ALLOCATORS[config.allocator](candidates, num_slots - protected, config)
    return HeadBudgets(scores.layer, tuple(protected + count for count in free))


def adakv_budgets(candidates: torch.Tensor, budget: int, config: AdaKVConfig) -> list[int]:
    """Ada-KV with safeguard (arXiv 2407.11550, algorithm 1 and section 4.2).

    candidates: float32 `[H, n]`. budget: candidates per head on average, at most n.
    The counts of each head among the global top `H * budget` scores are mixed with the uniform
    budget, `(1 - alpha) * count + alpha * budget`, as in the authors' code, and made integers
    that sum to exactly `H * budget`. No head gets more than n: both parts are at most n.
    """
    num_heads, num_candidates = candidates.shape
    chosen = top_first(candidates.flatten(), num_heads * budget)
    counts = torch.bincount(chosen // max(num_candidates, 1), minlength=num_heads).tolist()
    alpha = Fraction(config.alpha)
    return largest_remainder([(1 - alpha) * count + alpha * budget for count in counts])


def uniform_budgets(candidates: torch.Tensor, budget: int, config: AdaKVConfig) -> list[int]:
    """The same budget for every head (SnapKV, arXiv 2404.14469)."""
    return [budget] * candidates.shape[0]


def largest_remainder(shares: list[Fraction]) -> list[int]:
    """Round shares with a whole sum to integers with the same sum; ties go to the lower index.

    Exact arithmetic: every rank and every machine gets the same integers.
    """
    floors = [share.numerator // share.denominator for share in shares]
    missing = int(sum(shares)) - sum(floors)
    by_remainder = sorted(range(len(shares)), key=lambda i: (floors[i] - shares[i], i))
    for i in by_remainder[:missing]:
        floors[i] += 1
    return floors


ALLOCATORS: Final[dict[str, Callable[[torch.Tensor, int, AdaKVConfig], list[int]]]] = {
    "adakv": adakv_budgets,
    "uniform": uniform_budgets,
}
