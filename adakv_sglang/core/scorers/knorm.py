"""Key norm: small keys attract attention."""

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.scorers.inputs import LayerInputs


def knorm_scores(inputs: LayerInputs, _mass: torch.Tensor, _config: AdaKVConfig) -> torch.Tensor:
    """Minus the L2 norm of each key; float32 `[H, N]`. Source: Devoto et al., arXiv 2406.11430."""
    return -torch.cat([keys.norm(dim=-1).T for keys in inputs.key_parts()], dim=1)
