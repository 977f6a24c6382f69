"""Definition of `value_norms` in float32 torch."""

import torch

PART = 1024  # tokens


def value_norms_reference(value: torch.Tensor, weight: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """See `value_norms`. One KV head and some tokens at a time, so that `[G, PART, M]` is the largest temporary."""
    num_q_heads, num_heads = weight.shape[0], value.shape[1]
    group = num_q_heads // num_heads
    norms = torch.empty(num_q_heads, slots.shape[0], dtype=torch.float32, device=value.device)
    for head in range(num_heads):
        heads = slice(head * group, (head + 1) * group)
        projection = weight[heads].float()
        for start in range(0, slots.shape[0], PART):
            values = value[slots[start : start + PART].long(), head].float()
            norms[heads, start : start + PART] = (values @ projection).abs().sum(dim=2)
    return norms
