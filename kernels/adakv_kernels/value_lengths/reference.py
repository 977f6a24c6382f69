"""Definition of `value_lengths` in float32 torch."""

from typing import Final

import torch

PART: Final = 16384  # tokens that are converted at a time


def value_lengths_reference(value: torch.Tensor, metric: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """See `value_lengths`. Values of `PART` tokens of all heads, three times, are the largest temporary."""
    squares = []
    for part in torch.split(slots.long(), PART):
        values = value[part].float().transpose(0, 1)  # [H, n, D]
        squares.append((values @ metric * values).sum(dim=2))
    return torch.cat(squares, dim=1).clamp_min(0.0).sqrt()
