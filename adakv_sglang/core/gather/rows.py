"""Attention probabilities, so many rows at a time that they stay bounded."""

from collections.abc import Iterator
from typing import Final

import torch

ROOM: Final = 2**24  # float32 elements at a time: 64 MiB


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Dot products float32 `[C, n, m]` of `a` `[C, n, D]` with `b` `[C, m, D]`; nothing is rounded to 16 bits."""
    if a.is_cuda and a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(a, b.transpose(1, 2), out_dtype=torch.float32)
    return a.float() @ b.float().transpose(1, 2)


def causal_rows(
    query: torch.Tensor, key: torch.Tensor, position: int, scaling: float
) -> Iterator[torch.Tensor]:
    """Attention of successive queries of one KV head, in parts of t queries: float32 `[t * G, m]`.

    query: `[n, G, D]`, the first at `position`. key: `[position + n, D]`. Softmax over all keys up to the query's
    own; m is the position behind the part's last query. Rows are ordered by query, then by head of the group.
    """
    num_queries, group, _ = query.shape
    part = max(1, ROOM // (group * (position + num_queries)))
    for queries in torch.split(query, part):
        count = queries.shape[0]
        end = position + count
        logits = products(queries.flatten(0, 1).unsqueeze(0), key[:end].unsqueeze(0)).squeeze(0).mul_(scaling)
        later = torch.ones(count, count, dtype=torch.bool, device=key.device).triu(1).unsqueeze(1)
        logits.view(count, group, end)[:, :, position:].masked_fill_(later, float("-inf"))
        yield logits.softmax(dim=1)
        position = end
