"""KeyDiff: keys that differ from the average key."""

from typing import Final

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.scorers.inputs import LayerInputs

TINY: Final = 1e-12  # norms are at least this, as in torch's normalize


def keydiff_scores(inputs: LayerInputs, _mass: torch.Tensor, _config: AdaKVConfig) -> torch.Tensor:
    """Minus the cosine similarity of each key with the mean of all normalised keys; float32 `[H, N]`.

    Source: KeyDiff, arXiv 2504.15364, section 3; the whole context at once, not in blocks.
    """
    norms, sums = [], []
    for keys in inputs.key_parts():
        norms.append(keys.norm(dim=-1).clamp_min(TINY))  # [n, H]
        sums.append(torch.einsum("nhd,nh->hd", keys, 1 / norms[-1]))
    anchor = torch.stack(sums).sum(0)
    anchor = anchor / anchor.norm(dim=-1, keepdim=True).clamp_min(TINY)
    similarity = [
        torch.einsum("nhd,hd->hn", keys, anchor) / norm.T
        for keys, norm in zip(inputs.key_parts(), norms, strict=True)
    ]
    return -torch.cat(similarity, dim=1)
