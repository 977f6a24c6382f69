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
    groups: Sequence[Sequence[int] | torch.Tensor], num_rows: int, num_heads: int, tokens_per_tile: int
) -> BatchLayout:
    """Cut groups of query rows, one per context, into tiles.

    groups: for each context the query rows that attend to it; no row twice. num_rows: T, rows of the batch.
    Runs on the host between two batches: a fixed number of operations, however many rows there are.
    """
    parts = [torch.as_tensor(group, dtype=torch.int32) for group in groups]
    tokens = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    per_head = (sizes + tokens_per_tile - 1) // tokens_per_tile
    tiles = per_head * num_heads
    token_start, tile_start = sizes.cumsum(0) - sizes, tiles.cumsum(0) - tiles

    entry = torch.repeat_interleave(tiles)  # context of each tile
    within = torch.arange(len(entry)) - tile_start[entry]
    first = within % per_head[entry] * tokens_per_tile
    count = (sizes[entry] - first).clamp(max=tokens_per_tile)
    of_tiles = torch.stack([entry, within // per_head[entry], token_start[entry] + first, count]).int()

    owner = torch.repeat_interleave(sizes)  # context of each token
    place = torch.arange(len(owner)) - token_start[owner]
    tile = tile_start[owner] + place // tokens_per_tile
    rows = torch.zeros(3, num_rows, dtype=torch.int32)
    rows[0] = -1
    rows[:, tokens.long()] = torch.stack([tile, per_head[owner], place % tokens_per_tile]).int()
    return BatchLayout(tokens, *of_tiles, *rows)
