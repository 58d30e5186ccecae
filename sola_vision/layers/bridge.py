"""Hidden State Bridge: the state of an early linear layer, handed to a later softmax layer."""

# B batch, N tokens of the target, M tokens of the source, C channels of the target, S channels of the source

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sola_vision.layers import Grid
from sola_vision.layers.recording import is_recorded
from sola_vision.spec import Bridge
from sola_vision.terms import Terms, elementwise, linear, sigmoid_gate, total


class HiddenStateBridge(nn.Module):
    """``x' = x + sigmoid(x) ⊙ Linear(Sample(state))``.

    ``sample`` averages the ``(B, M, S)`` state of the source over the tokens that merge into one token of the
    target, ``2^halvings`` to a side, fewer at the right and bottom edge; it runs where the state is made, so that
    only the small result is kept. ``forward`` maps it to the width of ``x`` ``(B, N, C)``, gates it and adds it.
    Source: SoLA-Vision, arXiv 2601.11164, Fig. 4b; average and sigmoid are our reading of the figure.
    """

    def __init__(self, source_dim: int, dim: int, halvings: int) -> None:
        super().__init__()
        self.factor = 2**halvings
        self.linear = nn.Linear(source_dim, dim, bias=False)

    def sample(self, state: Tensor, grid: Grid) -> Tensor:
        """``(B, M, S)`` on ``grid`` → ``(B, N, S)`` on the target's grid."""
        if self.factor == 1:
            return state
        batch, _, channels = state.shape
        image = state.view(batch, grid[0], grid[1], channels)
        if is_recorded():
            return _means(image, self.factor).flatten(1, 2)
        image = F.avg_pool2d(image.permute(0, 3, 1, 2), self.factor, ceil_mode=True)
        return image.flatten(2).transpose(1, 2)

    def forward(self, x: Tensor, sampled: Tensor) -> Tensor:
        added: Tensor = torch.sigmoid(x) * self.linear(sampled)
        return x + added

    def extra_repr(self) -> str:
        return f"factor={self.factor}"

    @staticmethod
    def terms(source_dim: int, dim: int, halvings: int, source_tokens: Any, tokens: Any) -> Terms:
        """The map, the gate and the sum; sampling adds every element of the state once."""
        return total(
            elementwise(source_tokens * source_dim) if halvings else Terms(),
            linear("bridge", tokens, source_dim, dim),
            sigmoid_gate(tokens * dim),
            elementwise(tokens * dim),
        )


def bridge_name(bridge: Bridge) -> str:
    """The bridge's key in ``Backbone.bridges``, such as ``1_2_to_3_3``."""
    source, target = bridge.source, bridge.target
    return f"{source.stage}_{source.layer}_to_{target.stage}_{target.layer}"


def _means(image: Tensor, factor: int) -> Tensor:
    """``avg_pool2d`` with ``ceil_mode`` of ``(B, rows, columns, C)``, for graphs of any size.

    In ceil mode PyTorch asks whether the last window is cut: ``torch.export`` refuses a range of sizes for that, and
    AOTInductor (2.13) takes the answer of the example for all sizes and then reads behind the image.
    """
    batch, rows, columns, channels = image.shape
    high, wide = (rows + factor - 1) // factor, (columns + factor - 1) // factor
    image = F.pad(image, (0, 0, 0, wide * factor - columns, 0, high * factor - rows))
    means = image.view(batch, high, factor, wide, factor, channels).mean((2, 4))
    # a window over the edge has fewer tokens than it was divided by
    by_row, by_column = _fullness(image, rows, high, factor), _fullness(image, columns, wide, factor)
    return means / (by_row[:, None, None] * by_column[:, None])


def _fullness(like: Tensor, tokens: int, windows: int, factor: int) -> Tensor:
    """The share of each window that holds tokens, ``(windows)``."""
    starts = torch.arange(windows, device=like.device) * factor
    return ((tokens - starts).clamp(max=factor) / factor).to(like.dtype)
