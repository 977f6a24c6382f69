"""CriticalKV: how much a token's value can move the layer's output."""

from typing import Final

import torch

from adakv_sglang.core.scorers.inputs import LayerInputs

ROOM: Final = 2**24  # elements of projected values at a time: 32 MiB in bf16


def output_norms(inputs: LayerInputs) -> torch.Tensor:
    """L1 norm of each token's value behind the output projection, mean over the query group; float32 `[H, N]`.

    Products in the dtype of the values, so many tokens at a time that they stay bounded.
    Source: CriticalKV, arXiv 2502.03805; `select_tokens` has the two stages.
    """
    assert inputs.output_weight is not None
    group = inputs.group
    norms = torch.empty(inputs.num_heads, inputs.num_tokens, device=inputs.slots.device)
    part = max(1, ROOM // (group * inputs.output_weight.shape[2]))
    for head in range(inputs.num_heads):
        weight = inputs.output_weight[head * group : (head + 1) * group].to(inputs.value.dtype)
        for start in range(0, inputs.num_tokens, part):
            values = inputs.value[inputs.slots[start : start + part], head]
            projected = values @ weight  # [G, n, hidden]
            norm = torch.linalg.vector_norm(projected, ord=1, dim=2, dtype=torch.float32)
            norms[head, start : start + part] = norm.mean(dim=0)
    return norms
