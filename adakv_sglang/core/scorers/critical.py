"""CriticalKV: how much a token's value can move the layer's output."""

import torch

from adakv_kernels import value_norms
from adakv_sglang.core.scorers.inputs import LayerInputs


def output_norms(inputs: LayerInputs) -> torch.Tensor:
    """L1 norm of each token's value behind the output projection, mean over the query group; float32 `[H, N]`.

    Source: CriticalKV, arXiv 2502.03805; `select_tokens` has the two stages.
    """
    return projected_norms(inputs).view(inputs.num_heads, inputs.group, -1).mean(dim=1)


def projected_norms(inputs: LayerInputs) -> torch.Tensor:
    """L1 norm of each token's value behind the part of the projection that each query head feeds; float32 `[HQ, N]`."""
    assert inputs.output_weight is not None
    weight = inputs.output_weight.to(inputs.value.dtype)
    return value_norms(inputs.value, weight, slots=inputs.slots)
