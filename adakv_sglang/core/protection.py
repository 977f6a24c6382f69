"""What no head may drop: one mask that scores, budgets and selection share."""

import torch

from adakv_sglang.config import AdaKVConfig


def protected_mask(num_tokens: int, config: AdaKVConfig, device: torch.device) -> torch.Tensor:
    """Whether each token is kept by every head: sinks, window and `config.protect`; bool `[N]`."""
    mask = torch.zeros(num_tokens, dtype=torch.bool)  # filled on the host: one copy, not a launch per span
    for start, end in config.protected_spans(num_tokens):
        mask[start:end] = True
    return mask.to(device)


def candidates(value: torch.Tensor, config: AdaKVConfig) -> torch.Tensor:
    """Of values `[H, N]` those of the tokens that a head may drop, `[H, n]`, in the order of the tokens."""
    return value[:, ~protected_mask(value.shape[1], config, value.device)]
