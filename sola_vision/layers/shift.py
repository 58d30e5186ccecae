"""Q-Shift: every token sees a part of its four neighbours, at the price of a copy."""

# B batch, N tokens, C channels

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sola_vision.layers import Grid
from sola_vision.terms import Terms, elementwise, total


def q_shift(x: Tensor, grid: Grid) -> Tensor:
    """Shift four channel groups by one token: right, left, down, up.

    ``x``: ``(B, N, C)`` on a grid of ``(rows, columns)``. Group g holds channels ``g·⌊C/4⌋`` to ``(g+1)·⌊C/4⌋``; a
    token on the edge receives zero where it has no neighbour; channels left over when C is no multiple of 4 stay.
    Source: Vision-RWKV, arXiv 2403.02308, section 3.2.
    """
    batch, tokens, channels = x.shape
    group = channels // 4
    rows, columns = grid
    right, left, down, up, rest = x.view(batch, rows, columns, channels).split(
        [group, group, group, group, channels - 4 * group], dim=-1
    )
    # a negative pad crops: one row or column leaves on one side and zeros enter on the other
    shifted = (
        F.pad(right, (0, 0, 1, -1)),
        F.pad(left, (0, 0, -1, 1)),
        F.pad(down, (0, 0, 0, 0, 1, -1)),
        F.pad(up, (0, 0, 0, 0, -1, 1)),
        rest,
    )
    return torch.cat(shifted, dim=-1).view(batch, tokens, channels)


class ShiftMix(nn.Module):
    """Q-Shift followed by one learned mix per branch: ``m_b ⊙ x + (1 − m_b) ⊙ q_shift(x)``.

    ``branches``: how many mixed copies ``forward`` returns. Without ``shift`` it returns ``x`` for every branch, and
    has no parameters and no cost.
    """

    def __init__(self, dim: int, branches: int, *, shift: bool) -> None:
        super().__init__()
        self.branches = branches
        self.ratios = nn.Parameter(torch.ones(branches, dim)) if shift else None

    def init_weights(self, powers: tuple[float, ...]) -> None:
        """Set branch b's share of the token itself to ``(c/C)^powers[b]`` for channel c: early channels look around."""
        if self.ratios is None:
            return
        dim = self.ratios.size(1)
        place = torch.arange(dim, dtype=torch.float64) / dim
        with torch.no_grad():
            self.ratios.copy_(torch.stack([place**power for power in powers]))

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        if self.ratios is None:
            return (x,) * self.branches
        shifted = q_shift(x, grid)
        return tuple(torch.lerp(shifted, x, ratio) for ratio in self.ratios.to(x.dtype).unbind(0))

    @staticmethod
    def terms(dim: int, branches: int, tokens: Any, *, shift: bool) -> Terms:
        """Three operations per element and branch (subtract, scale, add); the shift itself only moves data."""
        if not shift:
            return Terms()
        return total(elementwise(tokens * dim, 3 * branches), Terms(params=branches * dim))
