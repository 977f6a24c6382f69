"""Definition of `key_leverage` in float32 torch; what is summed over tokens in float64."""

from typing import Final

import torch

from adakv_kernels.rotary import Rotary

PART: Final = 16384  # tokens that are converted at a time


def projected_reference(
    key: torch.Tensor, rotary: Rotary, slots: torch.Tensor, sketch: torch.Tensor, inner: tuple[int, int]
) -> torch.Tensor:
    """Keys before positional encoding, less the one in the middle, times `sketch`; float32 `[H, n, S]`.

    Any key will do: what all have in common costs no digits of what differs then.
    """
    middle = sum(inner) // 2

    def unrotated(positions: torch.Tensor) -> torch.Tensor:
        return rotary.unrotate(key[slots[positions].long()], positions).transpose(0, 1)  # [H, n, D]

    positions = torch.arange(*inner, device=slots.device)
    common = unrotated(positions[middle - inner[0]].view(1))
    return torch.cat([(unrotated(part) - common) @ sketch for part in torch.split(positions, PART)], dim=1)


def leverage_of_rows(rows: torch.Tensor, regularizer: float) -> torch.Tensor:
    """diag(X (X'X + regularizer)^-1 X') of the rows less their mean; float32 `[H, n, S]`, overwritten, to `[H, n]`.

    Memory beside them: 16 S bytes per head for `PART` rows. The root exists: sums of squares in float64 are off by
    far less than the regularizer.
    """
    rows -= rows.mean(dim=1, keepdim=True, dtype=torch.float64).float()
    identity = torch.eye(rows.shape[2], dtype=torch.float64, device=rows.device)
    gram = regularizer * identity
    for part in torch.split(rows, PART, dim=1):
        wide = part.double()
        gram = gram + wide.mT @ wide
    root = torch.linalg.cholesky_ex(gram).L
    inverse = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False).float().mT
    found = [(part @ inverse).square().sum(dim=2) for part in torch.split(rows, PART, dim=1)]
    return torch.cat(found, dim=1)
