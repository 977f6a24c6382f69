"""The value every attention level returns."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class AttentionState:
    """Attention of a set of queries over a set of keys, mergeable with another set of keys.

    out: float32 `[T, HQ, D]`, softmax-weighted mean of the values; 0 where there were no keys.
    lse: float32 `[T, HQ]`, logarithm (natural) of the sum of exp(scaled scores); -inf without keys.
    """

    out: torch.Tensor
    lse: torch.Tensor
