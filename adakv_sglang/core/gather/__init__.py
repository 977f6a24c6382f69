"""Readings of a context's queries while forwards compute them: what cannot be had from K and V afterwards."""

from collections.abc import Callable
from typing import Final

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.gather.accumulated import AccumulatedGatherer
from adakv_sglang.core.gather.non_causal import NonCausalGatherer
from adakv_sglang.core.gather.pieces import Gatherer, QueryPiece
from adakv_sglang.core.gather.reconstruction import (
    REPEATED_TOKENS,
    ReconstructionGatherer,
    cut_chunks,
    repeating_room,
)

__all__ = [
    "GATHERERS",
    "REPEATED_TOKENS",
    "AccumulatedGatherer",
    "Gatherer",
    "NonCausalGatherer",
    "QueryPiece",
    "ReconstructionGatherer",
    "cut_chunks",
    "repeating_room",
]

# For each scorer that needs every query of the context: from its number of tokens to what `gathered` holds.
GATHERERS: Final[dict[str, Callable[[int, AdaKVConfig], Gatherer]]] = {
    "compactor": NonCausalGatherer,
    "h2o": AccumulatedGatherer,
}
