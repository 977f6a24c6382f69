"""Random tokens: the other baseline."""

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.scorers.inputs import LayerInputs


def random_scores(inputs: LayerInputs, _mass: torch.Tensor, _config: AdaKVConfig) -> torch.Tensor:
    """Uniform in [0, 1), float32 `[H, N]`: the same for the same layer and sizes, on every machine."""
    source = torch.Generator().manual_seed(inputs.layer)
    scores = torch.rand(inputs.num_heads, inputs.num_tokens, generator=source)
    return scores.to(inputs.slots.device)
