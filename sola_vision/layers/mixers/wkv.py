"""The paper's linear layer: Vision-RWKV's bidirectional WKV."""

# B batch, N tokens, C channels

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sola_vision import ops
from sola_vision.layers import Grid
from sola_vision.layers.maps import is_its_matrix
from sola_vision.layers.mixers.base import Mixer
from sola_vision.layers.shift import ShiftMix
from sola_vision.ops._checks import accumulate_dtype
from sola_vision.ops._in_place import gated
from sola_vision.ops.wkv import DECAY_PER, scalar_ops
from sola_vision.terms import Terms, linear, sigmoid_gate, total


class WKV(Mixer):
    """``y = O(sigmoid(R x_r) ⊙ wkv(K x_k, V x_v))`` with bias-free C × C maps, a decay and a bonus per channel.

    ``x_k``, ``x_v``, ``x_r`` are learned mixes of a token and its shifted neighbours when ``shift``, else the token.
    ``decay_per``: whether the decay is per whole ``"sequence"``, so that reach is a share of the image (Vision-RWKV),
    or per ``"token"``, so that reach is a number of tokens (the paper's analysis). The state is the WKV average.
    Source: Vision-RWKV, arXiv 2403.02308; SoLA-Vision, arXiv 2601.11164, Fig. 4c.
    """

    def __init__(self, dim: int, heads: int, *, shift: bool = True, decay_per: str = "sequence") -> None:
        super().__init__(dim, heads)
        if decay_per not in DECAY_PER:
            raise ValueError(f"decay_per: expected one of {', '.join(DECAY_PER)}, got {decay_per!r}")
        self.decay_per = decay_per
        self.mix = ShiftMix(dim, 3, shift=shift)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.decay = nn.Parameter(torch.empty(dim))
        self.bonus = nn.Parameter(torch.empty(dim))
        self.init_weights(0.0)

    def init_weights(self, depth: float) -> None:
        """Spread the channels over many reaches, more of them far in deeper layers.

        Per sequence the decay runs from −5 (favours far tokens) to 3 over the channels, as Vision-RWKV's; per token
        it runs from 1/64 to 1, a reach of 64 tokens down to one.
        """
        place = torch.linspace(0, 1, self.dim, dtype=torch.float64) ** (0.7 + 1.3 * depth)
        decay = 8 * place - 5 if self.decay_per == "sequence" else 64 ** (place - 1)
        # neighbouring channels start apart, so that they don't learn the same
        zigzag = torch.arange(self.dim).remainder(3) - 1
        with torch.no_grad():
            self.decay.copy_(decay)
            self.bonus.copy_(math.log(0.3) + 0.5 * zigzag)
        self.mix.init_weights((1 - depth, 1 - depth, (1 - depth) / 2))

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        for_key, for_value, for_receptance = self.mix(x, grid)
        k, v = self.key(for_key), self.value(for_value)
        # the scan keeps its sums, and wants its parameters, in at least float32
        dtype = accumulate_dtype(k)
        state = ops.wkv(k, v, self.decay.to(dtype), self.bonus.to(dtype), decay_per=self.decay_per)
        return self.output(self._gated(for_receptance, state)), state

    def _gated(self, for_receptance: Tensor, state: Tensor) -> Tensor:
        gate = self.receptance(for_receptance)
        # what a hook or another map has seen isn't ours to write over
        return gated(gate, state) if is_its_matrix(self.receptance) else torch.sigmoid(gate) * state

    def extra_repr(self) -> str:
        return f"decay_per={self.decay_per!r}"

    @classmethod
    def terms(cls, dim: int, heads: int, tokens: Any, *, shift: bool = True, decay_per: str = "sequence") -> Terms:
        """Four products, the mix, the scan (scalar operations, no matrix product) and the gate."""
        return total(
            ShiftMix.terms(dim, 3, tokens, shift=shift),
            *(linear(name, tokens, dim, dim) for name in ("key", "value", "receptance", "output")),
            Terms({}, scalar_ops(1, tokens, dim), 2 * dim),
            sigmoid_gate(tokens * dim),
        )
