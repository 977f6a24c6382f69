"""One order for all choices: higher scores first, lower index first among equals."""

import torch


def top_first(values: torch.Tensor, count: int) -> torch.Tensor:
    """Indices int64 `[count]` of the `count` largest of `values` `[n]`.

    Ties go to the lower index, so replicated heads on different ranks choose the same tokens.
    """
    order = torch.sort(values, descending=True, stable=True).indices
    return order[:count]
