"""How the rows of a batch that share contexts are cut into tiles: worked out on the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class BatchLayout:
    """Tiles of queries, one KV head each, and where every query row finds its tile. All int32, on the host.

    A tile holds at most `tokens_per_tile` tokens of one context. Tiles of the same context and head are
    neighbours, so that their keys are read from the cache.

    tokens: `[C]`, query rows that have a context, context by context.
    tile_entry, tile_head, tile_first, tile_count: `[tiles]`; the tile's context, its KV head, its first
    place in `tokens` and how many it holds.
    row_tile, row_stride, row_place: `[T]`; the tile of a query row's head h is `row_tile + h * row_stride`,
    the row is its `row_place`-th token; `row_tile` is -1 for rows without a context.
    """

    tokens: torch.Tensor
    tile_entry: torch.Tensor
    tile_head: torch.Tensor
    tile_first: torch.Tensor
    tile_count: torch.Tensor
    row_tile: torch.Tensor
    row_stride: torch.Tensor
    row_place: torch.Tensor


def lay_out_batch(
    groups: Sequence[Sequence[int]], num_rows: int, num_heads: int, tokens_per_tile: int
) -> BatchLayout:
    """Cut groups of query rows, one per context, into tiles.

    groups: for each context the query rows that attend to it; no row twice. num_rows: T, rows of the batch.
    """
    rows = torch.zeros(3, num_rows, dtype=torch.int32)  # tile, stride, place
    rows[0] = -1
    tiles: tuple[list[int], ...] = ([], [], [], [])  # entry, head, first, count
    tokens: list[int] = []
    for entry, group in enumerate(groups):
        per_head = -(-len(group) // tokens_per_tile)
        place, index = torch.arange(len(group), dtype=torch.int32), torch.tensor(group, dtype=torch.int64)
        rows[0, index] = len(tiles[0]) + place // tokens_per_tile
        rows[1, index] = per_head
        rows[2, index] = place % tokens_per_tile
        firsts = range(0, len(group), tokens_per_tile)
        tiles[0].extend([entry] * (num_heads * per_head))
        tiles[1].extend(head for head in range(num_heads) for _ in firsts)
        tiles[2].extend([len(tokens) + first for first in firsts] * num_heads)
        tiles[3].extend([min(len(group) - first, tokens_per_tile) for first in firsts] * num_heads)
        tokens.extend(group)
    entry_, head, first_, count = torch.tensor(tiles, dtype=torch.int32).view(4, -1)
    return BatchLayout(torch.tensor(tokens, dtype=torch.int32), entry_, head, first_, count, *rows)
