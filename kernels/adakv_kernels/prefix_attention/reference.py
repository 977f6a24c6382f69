"""Definition of `prefix_attention` in float32 torch."""

import torch

from adakv_kernels.attention_state import AttentionState


def prefix_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    indptr: torch.Tensor,
    lanes: torch.Tensor,
    value_offset: int,
    scaling: float,
) -> AttentionState:
    """See `prefix_attention`."""
    num_queries, num_q_heads, head_dim = query.shape
    bounds = indptr.tolist()
    group = num_q_heads // (len(bounds) - 1)
    out = torch.zeros(num_queries, num_q_heads, head_dim, dtype=torch.float32, device=query.device)
    lse = torch.full((num_queries, num_q_heads), float("-inf"), dtype=torch.float32, device=query.device)
    for head, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if start == end:
            continue
        kept = lanes[start:end].long()
        rows = slice(head * group, (head + 1) * group)
        logits = (query[:, rows].float() @ kv[kept].float().T) * scaling  # [T, G, n]
        lse[:, rows] = logits.logsumexp(dim=-1)
        out[:, rows] = logits.softmax(dim=-1) @ kv[kept + value_offset].float()
    return AttentionState(out, lse)
