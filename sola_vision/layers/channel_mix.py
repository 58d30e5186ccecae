"""Channel mix: the gated feed-forward part of every layer."""

# B batch, N tokens, C channels

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sola_vision import ops
from sola_vision.layers import Grid
from sola_vision.layers.maps import is_its_matrix
from sola_vision.layers.shift import ShiftMix
from sola_vision.terms import Terms, linear, sigmoid_gate, total


def hidden_width(dim: int, ratio: float) -> int:
    """Width of the hidden layer, ``ratio · dim`` rounded down but at least 1."""
    return max(1, int(dim * ratio))


class ChannelMix(nn.Module):
    """``y = sigmoid(R x_r) ⊙ V relu(K x_k)²`` with bias-free K: C→rC, V: rC→C, R: C→C.

    ``x_k`` and ``x_r`` are mixes of a token and its shifted neighbours when ``shift``, else the token.
    ``(2r + 1)·C²`` parameters in the maps. Shapes ``(B, N, C)`` → ``(B, N, C)``.
    Source: Vision-RWKV, arXiv 2403.02308, section 3.1; squared ReLU: Primer, arXiv 2109.08668.
    """

    def __init__(self, dim: int, ratio: float, *, shift: bool) -> None:
        super().__init__()
        hidden = hidden_width(dim, ratio)
        self.mix = ShiftMix(dim, 2, shift=shift)
        self.key = nn.Linear(dim, hidden, bias=False)
        self.value = nn.Linear(hidden, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)

    def init_weights(self, depth: float) -> None:
        """``depth``: this layer's place in the backbone, from 0 to 1; deeper layers start out looking around less."""
        self.mix.init_weights((1 - depth, 1 - depth))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        for_key, for_receptance = self.mix(x, grid)
        maps = (self.key, self.value, self.receptance)
        if all(map(is_its_matrix, maps)):
            return ops.channel_mix(for_key, for_receptance, *(part.weight for part in maps))
        # what a hook or another map has seen isn't ours to write over
        hidden = torch.relu(self.key(for_key)).square()
        out: Tensor = torch.sigmoid(self.receptance(for_receptance)) * self.value(hidden)
        return out

    @staticmethod
    def terms(dim: int, ratio: float, tokens: Any, *, shift: bool) -> Terms:
        """Three products, the mix, the squared ReLU (maximum, square) and the gate."""
        hidden = hidden_width(dim, ratio)
        return total(
            ShiftMix.terms(dim, 2, tokens, shift=shift),
            linear("key", tokens, dim, hidden),
            linear("value", tokens, hidden, dim),
            linear("receptance", tokens, dim, dim),
            Terms({}, {"activation": 2 * tokens * hidden}),
            sigmoid_gate(tokens * dim),
        )
