"""Definition of `key_leverage` in float32 torch; what is summed over tokens in float64."""

from typing import Final

import torch

from adakv_kernels.rotary import Rotary

PART: Final = 16384  # tokens that are converted at a time


def key_leverage_reference(
    key: torch.Tensor,
    rotary: Rotary,
    slots: torch.Tensor,
    sketch: torch.Tensor,
    inner: tuple[int, int],
    regularizer: float,
) -> torch.Tensor:
    """See `key_leverage`. Memory: 4 S bytes per head and token, and what `PART` tokens of all heads take."""
    projected = _projected(key, rotary, slots, sketch, inner)
    size = sketch.shape[2]
    gram = regularizer * torch.eye(size, dtype=torch.float64, device=key.device).expand(len(sketch), -1, -1)
    for rows in torch.split(projected, PART, dim=1):
        wide = rows.double()  # the sum of squares of long contexts needs it to stay positive definite
        gram = gram + wide.mT @ wide
    root = torch.linalg.cholesky_ex(gram).L.to(projected.dtype)
    found = [
        torch.linalg.solve_triangular(root, rows.mT, upper=False).square().sum(dim=1)
        for rows in torch.split(projected, PART, dim=1)
    ]
    return torch.cat(found, dim=1)


def _projected(
    key: torch.Tensor, rotary: Rotary, slots: torch.Tensor, sketch: torch.Tensor, inner: tuple[int, int]
) -> torch.Tensor:
    """Keys before positional encoding, projected and centred; float32 `[H, n, S]`."""
    reference, parts = None, []
    for positions in torch.split(torch.arange(*inner, device=slots.device), PART):
        keys = rotary.unrotate(key[slots[positions].long()], positions).transpose(0, 1)  # [H, n, D]
        # Any point will do; one close to the mean loses no digits of what differs from it.
        reference = keys.mean(dim=1, keepdim=True) if reference is None else reference
        parts.append((keys - reference) @ sketch)
    projected = torch.cat(parts, dim=1)
    return projected - projected.mean(dim=1, keepdim=True)
