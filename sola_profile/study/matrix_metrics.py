"""Figures of one mixing matrix A ``(N, N)``, from blocks of its rows, its factors, or its singular values.

Rows may be signed: with rotary positions linear attention subtracts. Shares are then those of magnitudes, ``p_ij = |A_ij| / Σ_j |A_ij|``,
and the negative part is a figure of its own.
"""

# N tokens, R rows of a block, D rank of factors

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from sola_vision.layers import Grid

# as many as a token and its neighbours are
TOP = 9
# what rows may differ by and still count as near, as half the sum of magnitudes
NEAR = 0.01
RANK_EPSILON = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class RowFigures:
    """Means over rows.

    ``entropy``: ``−Σ_j p ln p / ln N``, 0 for one token and 1 for all alike. ``participation``: ``1/Σ_j p²`` in tokens. ``top``: mass of the
    nine largest. ``local``: mass of the 3 × 3 neighbourhood, ``local_chance``: its share of the tokens. ``distance_px``: ``Σ_j p_ij |p_i − p_j|``
    in pixels, ``distance_chance_px``: that of a uniform row. ``negative``: ``Σ_j max(−A_ij, 0) / Σ_j |A_ij|``.
    Sources: Hedgehog, arXiv 2402.04347 (entropy); InLine, arXiv 2412.06590 (local mass); ViT, arXiv 2010.11929 (distance).
    """

    entropy: float
    participation: float
    top: float
    local: float
    local_chance: float
    distance_px: float
    distance_chance_px: float
    negative: float


@dataclass(frozen=True)
class Spectrum:
    """Ranks from the singular values s.

    ``numerical``: how many exceed ``N·ε·s_1``, ε of float32; ``effective``: ``exp(H(s/Σs))`` (Roy and Vetterli, 2007); ``stable``:
    ``Σ s²/s_1²``. ``route``: what they are the singular values of.
    """

    numerical: int
    effective: float
    stable: float
    route: str


@dataclass(frozen=True)
class Geometry:
    """Of the tokens of some rows to all: ``distance`` in pixels and ``local``, whether within 3 × 3, both ``(R, N)``."""

    distance: Tensor
    local: Tensor

    @classmethod
    def of(cls, queries: Tensor, grid: Grid, pixels: int) -> Geometry:
        """``pixels``: to the side of a token."""
        tokens = torch.arange(grid[0] * grid[1])
        down = (queries // grid[1])[:, None] - (tokens // grid[1])
        across = (queries % grid[1])[:, None] - (tokens % grid[1])
        distance = pixels * torch.hypot(down.double(), across.double())
        return cls(distance, (down.abs() <= 1) & (across.abs() <= 1))


class RowSums:
    """Adds up blocks of rows of one matrix."""

    def __init__(self) -> None:
        self._sums = torch.zeros(8, dtype=torch.float64)
        self._rows = 0

    def add(self, rows: Tensor, geometry: Geometry) -> None:
        """``rows``: ``(R, N)``."""
        magnitude = rows.abs()
        total = magnitude.sum(-1)
        # a row of nothing looks nowhere: it has no shares
        shares = magnitude / torch.where(total == 0, 1, total)[:, None]
        tokens = rows.size(1)
        figures = (
            torch.special.entr(shares).sum(-1) / max(log(tokens), 1e-300),
            1 / shares.square().sum(-1).clamp_min(1e-300),
            shares.topk(min(TOP, tokens), dim=-1).values.sum(-1),
            (shares * geometry.local).sum(-1),
            geometry.local.double().mean(-1),
            (shares * geometry.distance).sum(-1),
            geometry.distance.mean(-1),
            (-rows).clamp_min(0).sum(-1) / torch.where(total == 0, 1, total),
        )
        self._sums += torch.stack([figure.sum() for figure in figures])
        self._rows += rows.size(0)

    def figures(self) -> RowFigures:
        """The means."""
        return RowFigures(*(self._sums / max(1, self._rows)).tolist())


def spectrum(values: Tensor, size: int, route: str) -> Spectrum:
    """Ranks from singular values; ``size``: N, of the matrix that they stand for."""
    values = values.clamp_min(0)
    largest = values.max() if values.numel() else torch.zeros(())
    if largest == 0:
        return Spectrum(0, 0.0, 0.0, route)
    shares = values / values.sum()
    return Spectrum(
        numerical=int((values > size * RANK_EPSILON * largest).sum()),
        effective=float(torch.special.entr(shares).sum().exp()),
        stable=float((values / largest).square().sum()),
        route=route,
    )


def factor_values(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of ``left · rightᵀ``, both ``(N, D)``: those of the D × D product of their triangular parts."""
    values: Tensor = torch.linalg.svdvals(_triangular(left) @ _triangular(right).T)
    return values


def _triangular(factor: Tensor) -> Tensor:
    triangular: Tensor = torch.linalg.qr(factor, mode="r").R
    return triangular


def row_values(rows: Tensor) -> Tensor:
    """Singular values of ``(R, N)``, R ≤ N, as roots of the eigenvalues of ``A Aᵀ``: right to 1e-8 of the largest."""
    squares: Tensor = torch.linalg.eigvalsh(rows @ rows.T)
    return squares.clamp_min(0).sqrt()


def confusion(rows: Tensor, queries: Tensor) -> float:
    """Of the pairs of tokens whose queries are far apart, the share whose rows are near.

    Far: ``|q_i − q_j|`` above its median; near: ``½ Σ|A_i − A_j| < 0.01``. ``rows``: ``(R, N)``, ``queries``: ``(R, D)``. 0 where each query has a
    map of its own. After InLine, arXiv 2412.06590.
    """
    if rows.size(0) < 2:
        return 0.0
    between_queries = torch.pdist(queries.contiguous())
    far = between_queries >= between_queries.median()
    # alike queries all over: nothing is far
    far &= between_queries > 0
    near = torch.pdist(rows.contiguous(), p=1) / 2 < NEAR
    return float((near & far).sum() / far.sum().clamp_min(1))


def change(rows: Tensor, others: Tensor) -> float:
    """``½ Σ_j |A_ij − B_ij|``, the mean over rows: 0 for the same rows, 1 for rows that look at different tokens."""
    return float((rows - others).abs().sum(-1).mean() / 2)


def rank_and_condition(state: Tensor) -> tuple[int, float]:
    """Numerical rank of ``(D, V)`` and largest over smallest singular value; infinite where that is 0."""
    values = torch.linalg.svdvals(state)
    ranks = spectrum(values, max(state.shape), "state")
    smallest = float(values.min())
    return ranks.numerical, float(values.max()) / smallest if smallest > 0 else float("inf")
