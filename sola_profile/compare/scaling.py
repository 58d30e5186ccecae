"""How a measured or counted quantity grows with the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log

import numpy as np
import numpy.typing as npt

from sola_profile.cost.polynomial import last_rise
from sola_profile.measure.statistics import Interval, percentile_interval

Floats = npt.NDArray[np.float64]

COEFFICIENTS = 3


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Timings:
    """Medians of one model by the number of tokens, and bootstrap medians of each."""

    tokens: Sequence[int]
    medians_s: Sequence[float]
    resampled_s: Sequence[Floats]


@dataclass(frozen=True)
class Fit:
    """``time = a·N² + b·N + c`` with a, b, c ≥ 0, in seconds; N tokens of stage 1.

    Least squares on relative errors, so that every size has the same say; intervals from refits to resampled medians.
    ``freedom``: sizes minus coefficients; at 0 the curve is an interpolation that can't be wrong, and nothing speaks
    for the model. ``worst_residual``: the largest relative distance between the curve and a median.
    ``quadratic_overtakes``: N from which ``a·N²`` is more than ``b·N + c``; None when a is 0, and its interval ends
    at infinity when a is 0 in some refits.
    """

    a: Estimate
    b: Estimate
    c: Estimate
    freedom: int
    worst_residual: float
    quadratic_overtakes: Estimate | None

    def __call__(self, tokens: float) -> float:
        return (self.a.value * tokens + self.b.value) * tokens + self.c.value


@dataclass(frozen=True)
class Slope:
    """``d log(time) / d log(N)`` between two neighbouring sizes: 1 is linear, 2 is quadratic."""

    from_tokens: int
    to_tokens: int
    value: float
    interval: Interval | None = None


def fit_quadratic(tokens: Sequence[int], medians_s: Sequence[float], resampled_s: Sequence[Floats]) -> Fit | None:
    """Fit medians at several sizes; ``resampled_s`` holds bootstrap medians per size. None below three sizes."""
    if len(set(tokens)) < COEFFICIENTS:
        return None
    values = _nonnegative(tokens, medians_s)
    refits = refitted(tokens, resampled_s)
    a, b, c = (
        Estimate(float(value), percentile_interval(column)) for value, column in zip(values, refits.T, strict=True)
    )
    curve = np.polyval(values, np.asarray(tokens, dtype=np.float64))
    residuals = np.abs(curve / np.asarray(medians_s) - 1)
    return Fit(
        a,
        b,
        c,
        freedom=len(set(tokens)) - COEFFICIENTS,
        worst_residual=float(residuals.max()),
        quadratic_overtakes=_overtaking(values, refits),
    )


def refitted(tokens: Sequence[int], resampled_s: Sequence[Floats]) -> Floats:
    """Coefficients a, b, c of fits to resampled medians, one row per resample."""
    return np.array([_nonnegative(tokens, draw) for draw in np.stack(resampled_s, axis=1)])


def _nonnegative(tokens: Sequence[int], times_s: Sequence[float] | Floats) -> Floats:
    """Coefficients a, b, c ≥ 0 that minimise ``Σ ((a·N² + b·N + c) / t − 1)²``."""
    # a third of a second to import, and only a measured sweep has something to fit
    from scipy.optimize import nnls

    sizes = np.asarray(tokens, dtype=np.float64)
    # powers of N differ by many orders; in units of the largest N all columns are of one size
    scale = sizes.max()
    columns = np.vander(sizes / scale, COEFFICIENTS) / np.asarray(times_s)[:, None]
    solution, _ = nnls(columns, np.ones(len(sizes)))
    coefficients: Floats = solution / scale ** np.array([2, 1, 0])
    return coefficients


def _overtaking(values: Floats, refits: Floats) -> Estimate | None:
    signs = np.array([1.0, -1.0, -1.0])
    return crossing_estimate(signs * values, signs * refits)


def crossing_estimate(difference: Floats, resampled: Floats) -> Estimate | None:
    """The N from which a difference of two curves, coefficients a, b, c, is above 0 for good; None where it never is.

    ``resampled``: coefficients of the same difference between resampled curves, one row each. The interval ends at
    infinity where some of them never cross.
    """
    middle = last_rise(*map(float, difference))
    if middle is None:
        return None
    crossings = [last_rise(*map(float, row)) for row in resampled]
    return Estimate(middle, _interval_with_infinity([float("inf") if x is None else x for x in crossings]))


def _interval_with_infinity(values: Sequence[float]) -> Interval:
    # the nearest order statistics: interpolating between a number and infinity would give no number
    ordered = sorted(values)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.025, 0.975))
    return Interval(low, high)


def local_slopes(
    tokens: Sequence[int], values: Sequence[float], resampled: Sequence[Floats] | None = None
) -> tuple[Slope, ...]:
    """Slopes between neighbours in order of size, with intervals where resampled values are given.

    Neighbours of the same size, and values of 0, such as the MACs of a model without products, have none.
    """
    slopes = []
    for i in range(len(tokens) - 1):
        if tokens[i] == tokens[i + 1] or not (values[i] and values[i + 1]):
            continue
        stretch = log(tokens[i + 1] / tokens[i])
        interval = None
        if resampled is not None:
            interval = percentile_interval(np.log(resampled[i + 1] / resampled[i]) / stretch)
        slopes.append(Slope(tokens[i], tokens[i + 1], log(values[i + 1] / values[i]) / stretch, interval))
    return tuple(slopes)


def helpful_sizes(sides: Sequence[int], stride: int, wanted: int = 6) -> tuple[int, ...]:
    """Further square sizes that would give a fit freedom: one beyond the largest, then the widest gaps.

    All are multiples of ``stride``, as many as bring the sweep to ``wanted`` sizes.
    """
    known = sorted(set(sides))
    added: list[int] = []
    while len(known) < wanted:
        if added:
            gaps = [(high / low, low, high) for low, high in pairwise(known)]
            _, low, high = max(gaps)
            side = max(1, round((low * high) ** 0.5 / stride)) * stride
        else:
            side = max(1, round(known[-1] * 2**0.5 / stride)) * stride
        if side in known:
            break
        known = sorted([*known, side])
        added.append(side)
    return tuple(sorted(added))
