"""What no head may drop: the spans of the settings, as scores, budgets and selection share them."""

from itertools import chain

import torch

from adakv_sglang.config import AdaKVConfig


def protected_mask(num_tokens: int, config: AdaKVConfig, device: torch.device) -> torch.Tensor:
    """Whether each token is kept by every head: sinks, window and `config.protect`; bool `[N]`."""
    mask = torch.zeros(num_tokens, dtype=torch.bool, device=device)
    for start, end in config.protected_spans(num_tokens):
        mask[start:end] = True
    return mask


def candidates(value: torch.Tensor, config: AdaKVConfig) -> torch.Tensor:
    """Of values `[H, N]` those of the tokens that a head may drop, `[H, n]`, in the order of the tokens.

    What lies between the protected spans: a view where that is one piece, as a rule. The device is not waited for.
    """
    num_tokens = value.shape[1]
    bounds = [0, *chain.from_iterable(config.protected_spans(num_tokens)), num_tokens]
    between = [value[:, start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
    pieces = [piece for piece in between if piece.shape[1] > 0] or between[:1]
    return pieces[0] if len(pieces) == 1 else torch.cat(between, dim=1)
