"""What a scorer may read of one layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

PART: Final = 16384  # tokens


@dataclass(frozen=True, slots=True, eq=False)
class LayerInputs:
    """A context's tokens in one layer, as they lie in the pool.

    query: `[W, HQ, D]`, the queries of the last W tokens. key, value: the pool's `[rows, H, D]`, of which the
    rows `slots` (int64 `[N]`) are the tokens in order. scaling: factor on dot products. All with positional
    encoding applied.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    slots: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.slots.numel()

    @property
    def num_heads(self) -> int:
        """H, KV heads on this rank."""
        return self.key.shape[1]

    def key_parts(self) -> Iterator[torch.Tensor]:
        """Keys of all heads, float32 `[n, H, D]`, so many tokens at a time that the copies stay bounded."""
        for slots in torch.split(self.slots, PART):
            yield self.key[slots].float()

    def keys_of(self, head: int) -> torch.Tensor:
        """Keys of one head, float32 `[N, D]`: one head at a time bounds the copy."""
        return self.key[self.slots, head].float()

    def values_of(self, head: int) -> torch.Tensor:
        """Values of one head, float32 `[N, D]`."""
        return self.value[self.slots, head].float()
