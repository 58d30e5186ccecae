"""From how many tokens one model costs more than another: exactly in multiply-accumulates, by fit in measured time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sola_profile.compare.scaling import Estimate, Timings, crossing_estimate, fit_quadratic, refitted
from sola_profile.cost.polynomial import Polynomial


@dataclass(frozen=True)
class Crossover:
    """``dearer`` costs more than ``cheaper`` from so many tokens on; both are roles of models.

    ``macs_at``: exact, of one image; None where it does at every size. ``time_at``: where the two fitted
    curves of latency cross, None where they don't or where one couldn't be fitted. ``beyond``: whether that is outside
    the sizes that were measured of both, so that the forms of the curves decide and no measurement does.
    """

    dearer: str
    cheaper: str
    macs_at: float | None
    time_at: Estimate | None
    beyond: bool


def crossover(names: tuple[str, str], macs: tuple[Polynomial, Polynomial], times: tuple[Timings, Timings]) -> Crossover:
    """Where the first of two models, by their roles, overtakes the second for good."""
    exact = (macs[0] - macs[1]).overtakes_at
    measured = _crossing(*times)
    beyond = False
    if measured is not None:
        first, last = (max(min(t.tokens) for t in times), min(max(t.tokens) for t in times))
        beyond = not first <= measured.value <= last
    return Crossover(*names, exact, measured, beyond)


def _crossing(dearer: Timings, cheaper: Timings) -> Estimate | None:
    """Where the fitted curves cross, with an interval from pairs of refits."""
    sides = (dearer, cheaper)
    fits = [fit for t in sides if (fit := fit_quadratic(t.tokens, t.medians_s, t.resampled_s)) is not None]
    if len(fits) < len(sides):
        return None
    values = [np.array([fit.a.value, fit.b.value, fit.c.value]) for fit in fits]
    refits = [refitted(t.tokens, t.resampled_s) for t in sides]
    return crossing_estimate(values[0] - values[1], refits[0] - refits[1])
