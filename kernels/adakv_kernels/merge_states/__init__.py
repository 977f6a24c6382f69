"""Joins the attention over two disjoint sets of keys into the attention over both."""

from adakv_kernels.attention_state import AttentionState
from adakv_kernels.checks import check_shape
from adakv_kernels.merge_states.reference import merge_states_reference


def merge_states(first: AttentionState, second: AttentionState) -> AttentionState:
    """State over the union of two disjoint key sets, by log-sum-exp weights.

    Associative and commutative up to rounding; a state without keys (lse = -inf) changes nothing.
    Raises ValueError unless both states have the same shape.
    """
    check_shape("second.out", second.out, tuple(first.out.shape))
    check_shape("second.lse", second.lse, tuple(first.lse.shape))
    return merge_states_reference(first, second)
