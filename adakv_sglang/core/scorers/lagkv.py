"""LagKV: tokens that stand out against the partition after theirs."""

from typing import Final

import torch

from adakv_sglang.config import AdaKVConfig
from adakv_sglang.core.scorers.inputs import LayerInputs
from adakv_sglang.core.scorers.streaming import streaming_scores

LAG: Final = 128  # tokens per partition, as in the paper
AT_A_TIME: Final = 128  # partitions, so that the copies stay bounded


def lagkv_scores(inputs: LayerInputs, mass: torch.Tensor, config: AdaKVConfig) -> torch.Tensor:
    """Rank within its partition of how far a token's K and V spread, relative to the next partition; `[H, N]`.

    Source: LagKV, arXiv 2504.04704, equations 3 to 9. Partitions of 128 tokens begin behind the sinks. The last
    whole partition and what follows it have nothing to be compared with and are kept first; so is, by age, a
    context of less than two partitions.
    """
    sinks, num_tokens = config.sinks, inputs.num_tokens
    parts = (num_tokens - sinks) // LAG
    if parts < 2:
        return streaming_scores(inputs, mass, config)
    scores = torch.ones(inputs.num_heads, num_tokens, device=inputs.slots.device)
    for first in range(0, parts - 1, AT_A_TIME):
        last = min(first + AT_A_TIME, parts - 1)
        start, end = sinks + first * LAG, sinks + last * LAG
        slots = inputs.slots[start : end + LAG].view(-1, LAG)  # one more, to compare the last with
        spread = _spread(inputs.key[slots].float()) + _spread(inputs.value[slots].float())
        rank = spread.argsort(dim=1, stable=True).argsort(dim=1)  # [parts, LAG, H]
        scores[:, start:end] = (rank / LAG).flatten(0, 1).T
    return scores


def _spread(states: torch.Tensor) -> torch.Tensor:
    """Softmax over each partition of the deviation over channels, in units of the next one's range.

    states: `[parts + 1, LAG, H, D]`; returns `[parts, LAG, H]`.
    """
    low, high = states[1:].amin(dim=1, keepdim=True), states[1:].amax(dim=1, keepdim=True)
    return ((states[:-1] - low) / (high - low)).std(dim=-1).softmax(dim=1)
