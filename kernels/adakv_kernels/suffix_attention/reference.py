"""Definition of `suffix_attention` in float32 torch."""

import torch

from adakv_kernels.attention_state import AttentionState


def suffix_attention_reference(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> AttentionState:
    """See `suffix_attention`."""
    num_queries, num_q_heads, head_dim = query.shape
    num_keys, num_kv_heads, _ = key.shape
    group = num_q_heads // num_kv_heads
    grouped = query.float().view(num_queries, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    keys = key.float().permute(1, 2, 0).unsqueeze(1)  # [H, 1, D, S]
    position = torch.arange(num_keys, device=key.device)
    hidden = position[None, :] > position[num_keys - num_queries :, None]  # [T, S]
    logits = ((grouped @ keys) * scaling).masked_fill(hidden, float("-inf"))  # [H, G, T, S]
    values = value.float().transpose(0, 1).unsqueeze(1)  # [H, 1, S, D]
    out = logits.softmax(dim=-1) @ values  # [H, G, T, D]
    lse = logits.logsumexp(dim=-1)  # [H, G, T]
    return AttentionState(
        out.permute(2, 0, 1, 3).reshape(num_queries, num_q_heads, head_dim),
        lse.permute(2, 0, 1).reshape(num_queries, num_q_heads),
    )
