"""How much dropping tokens can change a layer's output: Ada-KV's L1 bound (docs/bounds.md)."""

import torch

from adakv_sglang.core.scorers.critical import projected_norms
from adakv_sglang.core.scorers.inputs import LayerInputs


def loss_rate(inputs: LayerInputs) -> float:
    """2 G C: what a layer's L1 bound grows by per unit of attention that one KV head drops.

    C is the largest L1 norm of a value behind the output projection, over all tokens and query heads, rounded up
    by one unit of the values' dtype; G query heads share a KV head, whose dropped
    attention is their mean. The bound, `loss_rate * sum over KV heads of dropped mass`, is the epsilon of Ada-KV,
    arXiv 2407.11550, theorem 3.1, with the H * G query heads of the layer.
    """
    largest = projected_norms(inputs).amax().item()
    return 2 * inputs.group * largest * (1 + torch.finfo(inputs.value.dtype).eps)
