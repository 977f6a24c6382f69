"""Random tokens: the other baseline."""

from typing import Final

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.scorers.inputs import LayerInputs

MASK: Final = 0xFFFFFFFF


def random_scores(inputs: LayerInputs, _mass: torch.Tensor, _config: AdaKVConfig) -> torch.Tensor:
    """Uniform in [0, 1), float32 `[H, N]`: the same for the same layer and sizes, on every machine.

    A hash of each place (the 32-bit finaliser of MurmurHash3), so that nothing is copied from the host.
    """
    heads, tokens = inputs.num_heads, inputs.num_tokens
    x = torch.arange(heads * tokens, device=inputs.slots.device) + (inputs.layer + 1) * 0x9E3779B9
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x & MASK) ^ ((x & MASK) >> shift)
        x = x * factor & MASK  # int64 wraps around; the low 32 bits are right
    x = x ^ (x >> 16)
    return (x >> 8).float().div_(1 << 24).view(heads, tokens)
