"""Definition of `copy_lanes_` in torch."""

import torch


def copy_lanes_reference_(
    kv: torch.Tensor, source: torch.Tensor, destination: torch.Tensor, value_offset: int
) -> None:
    """See `copy_lanes_`."""
    source, destination = source.long(), destination.long()
    kv[destination] = kv[source]
    kv[destination + value_offset] = kv[source + value_offset]
