"""KeyDiff: keys that differ from the average key."""

import torch
from torch.nn.functional import cosine_similarity, normalize

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.scorers.inputs import LayerInputs


def keydiff_scores(inputs: LayerInputs, _mass: torch.Tensor, _config: AdaKVConfig) -> torch.Tensor:
    """Minus the cosine similarity of each key with the mean of all normalised keys; float32 `[H, N]`.

    Source: KeyDiff, arXiv 2504.15364, section 3; the whole context at once, not in blocks.
    """
    scores = []
    for head in range(inputs.num_heads):
        keys = inputs.keys_of(head)
        anchor = normalize(keys, dim=-1).mean(dim=0, keepdim=True)
        scores.append(-cosine_similarity(keys, anchor, dim=-1))
    return torch.stack(scores)
