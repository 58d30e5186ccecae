"""How time grows with the number of tokens, as a class with a name, or the classes that the measured sizes leave open.

Every class is a sum of terms in N, each ≥ 0, and each of those that make the class at least ``LEAST_SHARE`` of the time at
the largest size: a mixture whose quadratic part is next to nothing there *is* linear as far as the sizes tell, so that
nested classes exclude each other and can be told apart. Fits are compared by Akaike's criterion with the measured noise,
``χ² + 2·(number of coefficients)``, which with a known variance needs no correction for few points.
Source: Burnham and Anderson, Model Selection and Multimodel Inference (2002), 2.9 for the weights, 4.5 for the set of
classes that together have 95 % of them, 2.5 for the overdispersion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sola_profile.compare.scaling import Timings
from sola_profile.measure.latency import NARROW
from sola_profile.measure.statistics import CONFIDENCE, Floats

CONSTANT, LINEAR, LOG_LINEAR, QUADRATIC, MIXED = "constant", "linear", "N log N", "quadratic", "linear and quadratic"

# share of the time at the largest size from which a term makes a class
LEAST_SHARE = 0.05
# sampling stops when an interval is this narrow, so no size is known better
LEAST_NOISE = NARROW
# three coefficients and two sizes that can contradict them
FEWEST_SIZES = 5
# a size to propose is at most this many times the largest that was measured, a side
FARTHEST = 8.0
# between sizes to try, in tokens
STEP = 2**0.5

_TERMS: Mapping[str, Callable[[Floats], Floats]] = {
    "N": lambda tokens: tokens,
    "N log N": lambda tokens: tokens * np.log(tokens),
    "N²": lambda tokens: tokens**2,
}
# what makes each class, beside the constant that all have
CLASSES: Mapping[str, tuple[str, ...]] = {
    CONSTANT: (),
    LINEAR: ("N",),
    LOG_LINEAR: ("N log N",),
    QUADRATIC: ("N²",),
    MIXED: ("N", "N²"),
}


@dataclass(frozen=True)
class GrowthClass:
    """Which classes of growth the measured sizes leave open, the likeliest first.

    ``weights``: Akaike weight by class, adding up to 1. ``open``: the fewest classes that have 95 % of the weight; one
    of them is a verdict, and an empty tuple says that there are too few sizes for any. ``noise``: relative standard
    error that a size was taken to have, its median. ``separating_side``: the smallest further square size, in pixels and not below those measured, after
    which one class would be expected to be left whichever of them is true; None where none is needed or none was found.
    """

    weights: Mapping[str, float]
    open: tuple[str, ...]
    noise: float
    separating_side: int | None

    @property
    def name(self) -> str | None:
        """The class, where the sizes leave only one."""
        return self.open[0] if len(self.open) == 1 else None


@dataclass(frozen=True)
class _Data:
    """Sizes, their times, and the relative standard errors of those."""

    tokens: Floats
    times_s: Floats
    noise: Floats


@dataclass(frozen=True)
class _Curve:
    """A fit of one class: the time of each of its terms at the largest size."""

    name: str
    largest: float
    parts_s: Floats
    chi2: float

    def at(self, tokens: Floats) -> Floats:
        times_s: Floats = _columns(self.name, tokens, self.largest) @ self.parts_s
        return times_s


def growth_class(timings: Timings, side_of: Callable[[float], int], tokens_of: Callable[[int], int]) -> GrowthClass:
    """Compare all classes on medians at several sizes.

    ``side_of``: pixels a side, a multiple of the stride, of the square image with about so many tokens; ``tokens_of``:
    its tokens. They serve to name a size that would help.
    """
    if len(set(timings.tokens)) < FEWEST_SIZES:
        return GrowthClass({}, (), LEAST_NOISE, None)
    medians = np.asarray(timings.medians_s)
    sampling = np.array([np.std(draws) for draws in timings.resampled_s]) / medians
    data = _Data(np.asarray(timings.tokens, dtype=np.float64), medians, np.maximum(sampling, LEAST_NOISE))
    data = _dispersed(data)
    curves = {name: _fit(name, data) for name in CLASSES}
    weights = _weights(curves)
    left = _confidence_set(weights)
    side = None if len(left) == 1 else _separating_side({name: curves[name] for name in left}, data, side_of, tokens_of)
    return GrowthClass(weights, left, float(np.median(data.noise)), side)


def _dispersed(data: _Data) -> _Data:
    """The data with more noise, where even the best class misses the medians by more than their sampling error.

    What every size has of its own (tiles, caches) is in no sample of it.
    """
    sizes = len(data.tokens)
    misfits = [_fit(name, data).chi2 / (sizes - len(terms) - 1) for name, terms in CLASSES.items()]
    return _Data(data.tokens, data.times_s, data.noise * max(1.0, min(misfits)) ** 0.5)


def _fit(name: str, data: _Data) -> _Curve:
    """The best curve of a class: least squares on errors in units of the noise."""
    # a third of a second to import, and only a measured sweep has something to fit
    from scipy.optimize import lsq_linear

    largest = data.tokens.max()
    sigma = data.noise * data.times_s
    scaled = _columns(name, data.tokens, largest) / sigma[:, None]
    # in units of the time at the largest size, of order 1
    unit_s = data.times_s[data.tokens.argmax()]
    lowest = [0.0, *(LEAST_SHARE for _ in CLASSES[name])]
    found = lsq_linear(scaled * unit_s, data.times_s / sigma, (lowest, np.inf))
    return _Curve(name, largest, found.x * unit_s, 2 * float(found.cost))


def _columns(name: str, tokens: Floats, largest: float) -> Floats:
    """A constant and the terms of a class, each 1 at the largest size."""
    terms = [_TERMS[term] for term in CLASSES[name]]
    top = np.array([largest])
    return np.stack([np.ones_like(tokens), *(term(tokens) / term(top) for term in terms)], axis=1)


def _weights(curves: Mapping[str, _Curve]) -> dict[str, float]:
    """Akaike weights, largest first."""
    criteria = {name: curve.chi2 + 2 * (len(CLASSES[name]) + 1) for name, curve in curves.items()}
    best = min(criteria.values())
    likelihoods = {name: float(np.exp((best - value) / 2)) for name, value in criteria.items()}
    whole = sum(likelihoods.values())
    return {name: likelihoods[name] / whole for name in sorted(likelihoods, key=lambda name: -likelihoods[name])}


def _confidence_set(weights: Mapping[str, float]) -> tuple[str, ...]:
    found: list[str] = []
    for name, _ in sorted(weights.items(), key=lambda entry: -entry[1]):
        found.append(name)
        if sum(weights[member] for member in found) >= CONFIDENCE:
            break
    return tuple(found)


def _separating_side(
    left: Mapping[str, _Curve], data: _Data, side_of: Callable[[float], int], tokens_of: Callable[[int], int]
) -> int | None:
    """The smallest new side after which one class would be left, whichever of ``left`` is true."""
    known = set(data.tokens)
    # smaller ones than the smallest would tell more about the cost of a launch than about growth
    low, high = float(min(known)), float(max(known)) * FARTHEST**2
    steps = int(np.log(high / low) / np.log(STEP))
    for side in sorted({side_of(low * STEP**step) for step in range(steps + 1)}):
        tokens = tokens_of(side)
        if tokens not in known and all(_expected(name, left[name], data, tokens) for name in left):
            return side
    return None


def _expected(name: str, truth: _Curve, data: _Data, tokens: int) -> bool:
    """Whether a further size would be expected to leave ``name`` alone, if the truth is this curve."""
    sizes = np.append(data.tokens, float(tokens))
    noise = np.append(data.noise, np.median(data.noise))
    extended = _Data(sizes, truth.at(sizes), noise)
    return _weights({other: _fit(other, extended) for other in CLASSES})[name] >= CONFIDENCE
