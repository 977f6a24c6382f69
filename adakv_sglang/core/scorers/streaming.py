"""StreamingLLM: sinks and the most recent tokens; the baseline that any other scorer should beat."""

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.scorers.inputs import LayerInputs


def streaming_scores(inputs: LayerInputs, _mass: torch.Tensor, _config: AdaKVConfig) -> torch.Tensor:
    """Later is better, alike for every head; float32 `[H, N]`. Source: StreamingLLM, arXiv 2309.17453."""
    age = torch.arange(inputs.num_tokens, device=inputs.slots.device) / inputs.num_tokens
    return age.repeat(inputs.num_heads, 1)
