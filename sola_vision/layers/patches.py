"""Images to tokens, and tokens to fewer, wider tokens."""

# B batch, H height, W width, N tokens, C channels

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from sola_vision.layers import Grid
from sola_vision.layers.norm import LayerNorm
from sola_vision.layers.recording import is_recorded
from sola_vision.terms import Terms, layer_norm, linear, total


def _pad(x: Tensor, rows: int, columns: int, sides: tuple[int, ...]) -> Tensor:
    """Zeros below and to the right; ``sides`` are the pads of the dimensions behind the columns."""
    # a recorded graph pads by zero too, so that it serves every resolution without a case
    if not (is_recorded() or rows or columns):
        return x
    return F.pad(x, (*sides, 0, columns, 0, rows))


def as_map(x: Tensor, grid: Grid) -> Tensor:
    """``(B, N, C)`` → ``(B, C, rows, columns)``, a view in channels-last memory."""
    return x.view(x.size(0), grid[0], grid[1], x.size(2)).permute(0, 3, 1, 2)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, each mapped to one token: convolution with kernel = stride, then LayerNorm.

    ``(B, C_in, H, W)`` → ``(B, N, C)`` and its grid ``(⌈H/p⌉, ⌈W/p⌉)``; an image that isn't whole patches is padded
    with zeros on the right and at the bottom. Source: Swin, arXiv 2103.14030.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.norm = LayerNorm(dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Grid]:
        size = self.patch_size
        height, width = image.shape[-2:]
        rows, columns = (height + size - 1) // size, (width + size - 1) // size
        image = _pad(image, rows * size - height, columns * size - width, ())
        if not is_recorded():
            # channels last in, channels last out: the tokens below are then a view, and the convolution is faster
            image = image.movedim(1, -1).contiguous().movedim(-1, 1)
        tokens = self.projection(image).flatten(2).transpose(1, 2)
        return self.norm(tokens), (rows, columns)

    @staticmethod
    def terms(in_channels: int, dim: int, patch_size: int, tokens: Any) -> Terms:
        """The convolution with its bias, and the norm."""
        patch = in_channels * patch_size**2
        return total(linear("embedding", tokens, patch, dim, bias=True), layer_norm(tokens, dim))


class PatchMerging(nn.Module):
    """2 × 2 neighbours are concatenated, normalised and mapped to the next width.

    ``(B, N, C)`` on a grid ``(rows, columns)`` → ``(B, N', C')`` on ``(⌈rows/2⌉, ⌈columns/2⌉)``; odd sides are padded
    with a row or column of zeros. The order within a token is top-left, bottom-left, top-right, bottom-right.
    Source: Swin, arXiv 2103.14030.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        batch, _, channels = x.shape
        rows, columns = (grid[0] + 1) // 2, (grid[1] + 1) // 2
        x = x.view(batch, grid[0], grid[1], channels)
        x = _pad(x, 2 * rows - grid[0], 2 * columns - grid[1], (0, 0))
        x = x.view(batch, rows, 2, columns, 2, channels).permute(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, rows * columns, 4 * channels)
        return self.reduction(self.norm(x)), (rows, columns)

    @staticmethod
    def terms(dim: int, out_dim: int, tokens: Any) -> Terms:
        """``tokens``: after merging."""
        return total(layer_norm(tokens, 4 * dim), linear("merging", tokens, 4 * dim, out_dim))
