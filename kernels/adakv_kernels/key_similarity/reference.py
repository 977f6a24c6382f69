"""Definition of `key_similarity` in float32 torch."""

from typing import Final

import torch

PART: Final = 16384  # tokens that are converted at a time
TINY: Final = 1e-12  # norms are at least this, as in torch's normalize


def key_similarity_reference(key: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """See `key_similarity`. Keys of `PART` tokens of all heads in float32 are the largest temporary."""
    parts = torch.split(slots.long(), PART)
    norms, sums = [], []
    for part in parts:
        keys = key[part].float()
        norms.append(keys.norm(dim=-1).clamp_min(TINY))  # [n, H]
        sums.append(torch.einsum("nhd,nh->hd", keys, 1 / norms[-1]))
    anchor = torch.stack(sums).sum(0)
    anchor = anchor / anchor.norm(dim=-1, keepdim=True).clamp_min(TINY)
    similarity = [
        torch.einsum("nhd,hd->hn", key[part].float(), anchor) / norm.T
        for part, norm in zip(parts, norms, strict=True)
    ]
    return torch.cat(similarity, dim=1)
