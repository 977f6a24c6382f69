"""Definition of `merge_states` in float32 torch."""

import torch

from adakv_kernels.attention_state import AttentionState


def merge_states_reference(first: AttentionState, second: AttentionState) -> AttentionState:
    """See `merge_states`."""
    lse = torch.logaddexp(first.lse, second.lse)
    nothing = lse == float("-inf")  # no keys on either side
    share = torch.where(nothing, 0.0, (first.lse - lse).exp()).unsqueeze(-1)
    other = torch.where(nothing, 0.0, (second.lse - lse).exp()).unsqueeze(-1)
    return AttentionState(first.out * share + second.out * other, lse)
