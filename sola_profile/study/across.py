"""How features and products of mixing matrices change from layer to layer."""

# N tokens, C channels, P probes, M examples

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from sola_profile.study.matrix_metrics import row_values, spectrum
from sola_profile.study.mixing import Mixing
from sola_profile.workload import SEED
from sola_vision.layers import Grid

PROBES = 32


class ProductProbes:
    """The residual-free product ``A_l ⋯ A_1`` of a backbone's mean mixing matrices, seen through random vectors.

    Between stages a token takes the mean of the 2 × 2 tokens that merge into it, fewer at an odd edge. For x of
    independent signs ``E|(A − B)x|² = |A − B|²`` in the Frobenius norm, so that P products tell how far the product is from others
    without its N² entries. Residual paths are left out on purpose: with them every stack looks like the identity.
    """

    def __init__(self, grid: Grid) -> None:
        generator = torch.Generator().manual_seed(SEED)
        signs = torch.randint(0, 2, (grid[0] * grid[1], PROBES), generator=generator)
        self._mixed = (2 * signs - 1).double()
        # the same without any mixing, merged alone
        self._still = self._mixed
        self._uniform = self._mixed.mean(0)
        self._grid = grid

    def through(self, mixing: Mixing, grid: Grid) -> None:
        """Multiply by one more layer's matrix, after merging tokens as far as its grid asks for."""
        while self._grid != grid:
            self._still, _ = merged(self._still, self._grid)
            self._mixed, self._grid = merged(self._mixed, self._grid)
        with torch.no_grad():
            self._mixed = mixing.apply(self._mixed)

    def deviation(self) -> float | None:
        """``|A − U| / |I − U|``, U uniform over the image: 1 where nothing mixes, 0 for uniform rows; None for one token."""
        return self._share(self._uniform, self._uniform)

    def apart(self) -> float | None:
        """The same from the nearest matrix of equal rows: 0 where every token receives the same."""
        return self._share(self._mixed.mean(0), self._still.mean(0))

    def _share(self, mixed: Tensor, still: Tensor) -> float | None:
        # one token is uniform already
        if len(self._still) == 1:
            return None
        return float((self._mixed - mixed).norm() / (self._still - still).norm())

    def rank(self) -> float:
        """Effective rank of the product times the probes, at most as many as these."""
        small = self._mixed if self._mixed.size(0) <= PROBES else self._mixed.T
        return spectrum(row_values(small), max(self._mixed.shape), "probes").effective


def merged(x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """``(N, P)`` on a grid to the mean of every 2 × 2 tokens, fewer at an odd edge."""
    image = x.T.reshape(1, x.size(1), *grid)
    image = F.avg_pool2d(image, 2, ceil_mode=True)
    return image.flatten(2)[0].T, (image.size(2), image.size(3))


def rank_one_residual(x: Tensor) -> float:
    """``res(X) = X − 1·mean(X)ᵀ`` over X, both as ``√(|R|_1 |R|_∞)``; ``x``: ``(N, C)``.

    0 where all tokens are alike. Source: Dong et al., arXiv 2103.03404.
    """
    size = _composite(x)
    return _composite(x - x.mean(0)) / size if size else 0.0


def _composite(x: Tensor) -> float:
    magnitude = x.abs()
    return sqrt(float(magnitude.sum(0).max() * magnitude.sum(1).max()))


def token_similarity(x: Tensor) -> float:
    """Mean cosine between different tokens of ``(N, C)``. Source: arXiv 2104.12753."""
    tokens = x.size(0)
    if tokens < 2:
        return 1.0
    directions = F.normalize(x, dim=-1)
    # Σ_{i≠j} x_i·x_j = |Σ x|² − Σ |x_i|²
    total = directions.sum(0).square().sum() - directions.square().sum()
    return float(total / (tokens * (tokens - 1)))


def high_frequency(x: Tensor) -> float:
    """``|X − 1·mean(X)ᵀ| / |1·mean(X)ᵀ|`` of ``(N, C)``: all but the mean over the mean. Source: arXiv 2203.05962."""
    mean = x.mean(0, keepdim=True)
    return float((x - mean).norm() / mean.expand_as(x).norm().clamp_min(1e-300))


def examples(x: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Tokens of a layer as examples that layers of all stages have in common: merged down to the grid ``target``."""
    while grid != target:
        x, grid = merged(x, grid)
    return x


def linear_cka(features: Sequence[Tensor]) -> tuple[tuple[float, ...], ...]:
    """``|Yᵀ X|² / (|Xᵀ X| |Yᵀ Y|)`` of centred features ``(M, C)``, for every pair. Source: Kornblith et al., arXiv 1905.00414."""
    # of M × M products, which all layers have in whatever width
    centred = [x - x.mean(0) for x in features]
    kernels = [x @ x.T for x in centred]
    kernels = [kernel / kernel.norm().clamp_min(1e-300) for kernel in kernels]
    return tuple(tuple(float((one * other).sum()) for other in kernels) for one in kernels)
