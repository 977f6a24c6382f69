"""Leverage: how badly a key can be made of the others."""

import functools
import math
from typing import Final

import torch

from adakv_kernels import key_leverage
from adakv_sglang.core.scorers.inputs import LayerInputs

SKETCH: Final = 48  # dimensions that the keys are projected to
REGULARIZER: Final = 1e-2


@functools.cache
def sketch(layer: int, num_heads: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """Gaussian projection of keys, float32 `[H, D, 48]` with variance 1 / 48; the same on every machine.

    Kept, since it is drawn on the host: a copy in every layer would hold up the device.
    """
    source = torch.Generator().manual_seed(layer)
    return (torch.randn(num_heads, head_dim, SKETCH, generator=source) / math.sqrt(SKETCH)).to(device)


def leverage(inputs: LayerInputs, inner: slice) -> torch.Tensor:
    """`key_leverage` of the tokens in `inner`, behind a sketch of 48 dimensions; float32 `[H, n]`.

    Source: Compactor, arXiv 2507.08143, as in kvpress' LeverageScorePress. Raises ValueError without a rotary
    encoding that has a position for every token.
    """
    num_heads, head_dim = inputs.key.shape[1:]
    start, stop, _ = inner.indices(inputs.num_tokens)
    return key_leverage(
        inputs.key,
        inputs.encoding(),
        slots=inputs.slots,
        sketch=sketch(inputs.layer, num_heads, head_dim, inputs.slots.device),
        inner=(start, stop),
        regularizer=REGULARIZER,
    )
