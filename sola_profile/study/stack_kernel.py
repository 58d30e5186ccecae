"""Kernels of stacked layers, run on an impulse, beside the Gaussian that theory predicts.

Contents count as equal, so that a layer is a fixed kernel of the distance in raster order; the kernel of a layer is the mean of
its channels' kernels, since channels are mixed between layers. Source of the theory: SoLA-Vision, arXiv 2601.11164, eqs. 3–7.
"""

# N tokens, C channels, M layers

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log, nan, sqrt

import torch
from scipy.stats import linregress, t
from torch import Tensor

from sola_profile.study.across import merged
from sola_profile.study.horizon import channel_variances, kernel_variance, rates_of
from sola_profile.study.mixing import Mixing, even_mixing
from sola_profile.study.study_result import Decays, Profile, Reach, Repeated, Slope
from sola_vision.layers import Grid
from sola_vision.layers.mixers.base import Mixer
from sola_vision.spec import LayerSpec

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# depths whose kernels are drawn, as far as they fit
SHOWN_DEPTHS = (1, 4, 16)
SHOWN_POINTS = 81
HELD = 0.99
# 99 % of a Gaussian lie within so many standard deviations
GAUSSIAN_99 = 2.5758293035489004
FEWEST_POINTS = 3
# predicted kernels that are so many times as wide as the image are the same all over it
SATURATED = 2
# half of the narrowest interval of an exponent
NARROWEST = 0.001


def stack_reaches(layers: Sequence[tuple[LayerSpec, Mixer]], grids: Sequence[Grid]) -> tuple[Reach, ...]:
    """How far an impulse in the middle of the image has come behind every layer of a stack.

    ``grids``: of the stages. Between stages tokens are averaged as they merge. Raises ``ValueError`` for a mixer whose
    kernel is not known.
    """
    grid = grids[0]
    place = divmod(grid[0] * grid[1] // 2, grid[1])
    signal = _impulse(grid, place)
    variance, found = 0.0, []
    for layer, mixer in layers:
        while grid != grids[layer.id.stage - 1]:
            signal, grid = merged(signal, grid)
            place = (place[0] // 2, place[1] // 2)
        tokens = grid[0] * grid[1]
        with torch.no_grad():
            signal = _even(mixer, grid).apply(signal)
        variance += kernel_variance(mixer, tokens) / tokens**2
        distance = _offset(grid, place).abs()
        farthest = max(1, int(distance.max()))
        sigma, reach = _spread(signal[:, 0], distance)
        found.append(
            Reach(
                layer.id,
                mixer.kind == "softmax",
                tokens,
                grid[1],
                farthest,
                sqrt(variance) if variance < inf else inf,
                sigma / tokens,
                reach / farthest,
            )
        )
    return tuple(found)


def decays_of(layer: LayerSpec, mixer: Mixer, grid: Grid) -> Decays | None:
    """What a layer's decays are; None where nothing fades."""
    tokens = grid[0] * grid[1]
    rates, variances = rates_of(mixer, tokens), channel_variances(mixer, tokens)
    if rates is None or variances is None:
        return None
    ordered = rates.sort().values
    return Decays(
        layer.id,
        tokens,
        grid[1],
        slowest=float(ordered[0]),
        middle=float(ordered[len(ordered) // 2]),
        fastest=float(ordered[-1]),
        exact=sqrt(float(variances.mean())),
        discrete=sqrt(pooled(rates, lambda w: 1 / (2 * torch.sinh(w / 2).square()))),
        limit=sqrt(pooled(rates, lambda w: 2 / w.square())),
        favouring=float((rates <= 0).double().mean()),
        sigmas=tuple(variances.sqrt().tolist()),
    )


def pooled(rates: Tensor, variance: Callable[[Tensor], Tensor]) -> float:
    """Mean variance over channels; infinite when one doesn't fade."""
    return inf if bool((rates <= 0).any()) else float(variance(rates).mean())


def repeated(layers: Sequence[tuple[LayerSpec, Mixer]], grid: Grid, depths: Sequence[int] = DEPTHS) -> Repeated | None:
    """Layers of one stage stacked in turn, again and again, on its grid; None where one of them doesn't fade or there is one token.

    Exponents are fitted over the depths whose predicted kernel keeps 99 % of itself inside the image; the others, cut off
    by its edge, are in the figures all the same, until the predicted kernel is wider than the image many times over.
    """
    tokens = grid[0] * grid[1]
    variances = [kernel_variance(mixer, tokens) for _, mixer in layers]
    if inf in variances or tokens == 1:
        return None
    middle = divmod(tokens // 2, grid[1])
    offset, signal, variance = _offset(grid, middle), _impulse(grid, middle), 0.0
    mixings = [_even(mixer, grid) for _, mixer in layers]
    points, profiles = list[_Point](), []
    for depth in range(1, max(depths) + 1):
        turn = (depth - 1) % len(layers)
        with torch.no_grad():
            signal = mixings[turn].apply(signal)
        variance += variances[turn]
        if depth in depths:
            points.append(_Point(depth, sqrt(variance), *_spread(signal[:, 0], offset.abs())))
        if depth in SHOWN_DEPTHS:
            profiles.append(_profile(depth, signal[:, 0], offset, variance))
        if len(points) >= FEWEST_POINTS and GAUSSIAN_99 * sqrt(variance) > SATURATED * tokens:
            break
    inside = [point for point in points if GAUSSIAN_99 * point.predicted <= tokens / 2]
    return Repeated(
        tuple(layer.id for layer, _ in layers),
        tokens,
        grid[1],
        tuple(point.depth for point in points),
        tuple(point.predicted for point in points),
        tuple(point.sigma for point in points),
        tuple(point.reach for point in points),
        slope([point.depth for point in inside], [point.sigma for point in inside]),
        slope([point.depth for point in inside], [point.reach for point in inside]),
        tuple(profiles),
    )


@dataclass(frozen=True)
class _Point:
    depth: int
    predicted: float
    sigma: float
    reach: float


def _spread(kernel: Tensor, distance: Tensor) -> tuple[float, float]:
    """Standard deviation, and the distance of 99 %."""
    return deviation(kernel, distance), within(kernel, distance, HELD)


def slope(depths: Sequence[float], reaches: Sequence[float]) -> Slope | None:
    """Exponent of reach against depth; None for fewer than three points above 0.

    The interval is that of least squares, ``± t·s`` with n − 2 degrees of freedom: the scatter of the points about a line. They are
    no independent samples, so it tells a bend from a line, and nothing else. It is no narrower than ``± 0.001``, which is what
    cut-off tails change where the points lie on a line.
    """
    points = [(log(depth), log(reach)) for depth, reach in zip(depths, reaches, strict=True) if reach > 0]
    if len(points) < FEWEST_POINTS:
        return None
    fit = linregress(*zip(*points, strict=True))
    half = max(NARROWEST, float(t.ppf(0.975, len(points) - 2)) * float(fit.stderr))
    value = float(fit.slope)
    return Slope(value, value - half, value + half)


def deviation(kernel: Tensor, distance: Tensor) -> float:
    """``√(Σ Δ² |K| / Σ |K|)``; both ``(N,)``."""
    weight = kernel.abs()
    total = weight.sum()
    return sqrt(float((weight * distance.square()).sum() / total)) if total > 0 else nan


def within(kernel: Tensor, distance: Tensor, held: float) -> float:
    """The distance within which so much of ``Σ|K|`` lies, interpolated between whole tokens."""
    weight = torch.zeros(int(distance.max()) + 1, dtype=torch.float64)
    weight.index_add_(0, distance.long(), kernel.abs())
    mass = weight.cumsum(0) / weight.sum()
    place = int(torch.searchsorted(mass, held).clamp_max(len(mass) - 1))
    if place == 0:
        return 0.0
    below = float(mass[place - 1])
    return place - 1 + (held - below) / max(float(mass[place]) - below, 1e-300)


def _profile(depth: int, kernel: Tensor, offset: Tensor, variance: float) -> Profile:
    """Both as shares of their sum over the image, at points within four standard deviations."""
    measured = kernel / kernel.sum()
    predicted = torch.exp(-offset.square() / (2 * variance))
    predicted = predicted / predicted.sum()
    inside = torch.nonzero(offset.abs() <= 4 * sqrt(variance)).flatten()
    # an odd step between points, and the peak among them
    middle = int(torch.argmin(offset.abs()))
    step = max(1, len(inside) // SHOWN_POINTS)
    chosen = inside[(inside - middle) % step == 0]
    return Profile(
        depth,
        tuple(offset[chosen].tolist()),
        tuple(measured[chosen].tolist()),
        tuple(predicted[chosen].tolist()),
        float((measured - predicted).abs().sum() / 2),
    )


def _even(mixer: Mixer, grid: Grid) -> Mixing:
    """Its matrices for equal contents; raises ``ValueError`` when they are not known."""
    mixing = even_mixing(mixer, grid)
    if mixing is None:
        raise ValueError(f"the kernel of {type(mixer).__name__} is not known")
    return mixing


def _impulse(grid: Grid, place: Grid) -> Tensor:
    signal = torch.zeros(grid[0] * grid[1], 1, dtype=torch.float64)
    signal[place[0] * grid[1] + place[1]] = 1
    return signal


def _offset(grid: Grid, place: Grid) -> Tensor:
    """Steps in raster order from ``place``, ``(N,)``."""
    return torch.arange(grid[0] * grid[1], dtype=torch.float64) - (place[0] * grid[1] + place[1])
