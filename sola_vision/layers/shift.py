"""Q-Shift: every token sees a part of its four neighbours."""

# B batch, N tokens, C channels

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sola_vision import ops
from sola_vision.layers import Grid
from sola_vision.ops._checks import accumulate_dtype
from sola_vision.ops.shift_mix import scalar_ops
from sola_vision.terms import Terms


class ShiftMix(nn.Module):
    """Q-Shift followed by one learned mix per branch: ``m_b ⊙ x + (1 − m_b) ⊙ shift(x)``, as ``ops.shift_mix`` has it.

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
        mixes = ops.shift_mix(x.unflatten(1, grid), self.ratios.to(accumulate_dtype(x)))
        return tuple(mix.flatten(1, 2) for mix in mixes)

    @staticmethod
    def terms(dim: int, branches: int, tokens: Any, *, shift: bool) -> Terms:
        """The operations of every branch, and one parameter per channel of it."""
        return Terms({}, scalar_ops(tokens * dim, branches), branches * dim) if shift else Terms()
