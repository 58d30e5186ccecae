"""Old figures against new ones: counted ones exactly, measured times by their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

import numpy as np

from sola_profile.compare.ratios import ratio
from sola_profile.compare.scaling import Estimate
from sola_profile.measure.latency import Latency
from sola_profile.measure.statistics import CONFIDENCE, Interval, bootstrap_medians, percentile_interval

# with five, all may lie on one side of the median in more than 2.5 % of cases
FEWEST_ROUNDS = 6


class Verdict(Enum):
    """What became of a figure."""

    SAME = "same"
    LESS = "less"
    TOLERATED = "more, tolerated"
    MORE = "MORE"
    GONE = "NOT COUNTED ANY MORE"
    NEW = "new"
    FASTER = "faster"
    NO_DIFFERENCE = "no difference seen"
    SLOWER = "slower"
    WITHIN = "within the limit"
    TOO_SLOW = "TOO SLOW"
    UNCLEAR = "UNCLEAR"
    UNMEASURED = "not measured"

    @property
    def regression(self) -> bool:
        """Whether a gate closes."""
        return self in (Verdict.MORE, Verdict.GONE, Verdict.TOO_SLOW)


@dataclass(frozen=True)
class Figure:
    """A counted figure of both sides, None where a side doesn't have it. ``unit``: ``MACs``, ``operations``, ``bytes`` or ``numbers``.

    ``size``: the image, empty for what doesn't depend on it.
    """

    size: str
    name: str
    unit: str
    old: int | None
    new: int | None
    verdict: Verdict

    @property
    def change(self) -> float | None:
        """Relative change; None where there is nothing to compare with."""
        if not self.old or self.new is None:
            return None
        return self.new / self.old - 1


@dataclass(frozen=True)
class Time:
    """Measured latency of both sides; None where a side has none. ``ratio``: new over old, above 1 is slower.

    ``why``: what stands against a verdict, where it is unclear or there is none.
    """

    size: str
    old_s: float | None
    new_s: float | None
    ratio: Estimate | None
    verdict: Verdict
    why: str = ""


def judge(size: str, name: str, unit: str, sides: tuple[int | None, int | None], tolerance: float) -> Figure | None:
    """A counted figure; ``tolerance``: relative increase that is let through. None where neither side has it."""
    old, new = sides
    if old is None and new is None:
        return None
    if new is None:
        verdict = Verdict.GONE
    elif old is None:
        verdict = Verdict.NEW
    elif new == old:
        verdict = Verdict.SAME
    elif new < old:
        verdict = Verdict.LESS
    else:
        # exactly: 0.29 · 100 is below 29 in floats
        verdict = Verdict.TOLERATED if new - old <= Fraction(str(tolerance)) * old else Verdict.MORE
    return Figure(size, name, unit, old, new, verdict)


def judge_time(
    size: str, old: Latency | None, new: Latency | None, limit: float | None, *, interleaved: bool
) -> Time | None:
    """Latencies of both sides at one size; None where neither was measured.

    ``limit``: relative increase that is let through; None asks for no verdict but says what the interval shows.
    ``interleaved``: the sides took turns and share their rounds, so that ratios within rounds can be taken.
    """
    if old is None or new is None:
        if old is None and new is None:
            return None
        missing = "the old side has no time" if old is None else "the new side has no time"
        return Time(size, _median(old), _median(new), None, Verdict.UNMEASURED, missing)
    found = _paired(old, new) if interleaved else _unpaired(old, new)
    if found is None:
        why = f"fewer than {FEWEST_ROUNDS} rounds in common"
        return Time(size, old.median_s, new.median_s, None, Verdict.UNCLEAR, why)
    # drifts and few samples of one side cancel where the sides took turns
    doubts = "" if interleaved else _doubts(old, new)
    verdict = _shown(found) if limit is None else _against_limit(found, limit)
    if doubts and limit is not None:
        verdict = Verdict.UNCLEAR
    elif verdict is Verdict.UNCLEAR:
        doubts = "the interval holds the limit"
    return Time(size, old.median_s, new.median_s, found, verdict, doubts)


def _shown(found: Estimate) -> Verdict:
    if found.interval.low > 1:
        return Verdict.SLOWER
    return Verdict.FASTER if found.interval.high < 1 else Verdict.NO_DIFFERENCE


def _against_limit(found: Estimate, limit: float) -> Verdict:
    if found.interval.low > 1 + limit:
        return Verdict.TOO_SLOW
    return Verdict.WITHIN if found.interval.high <= 1 + limit else Verdict.UNCLEAR


def _paired(old: Latency, new: Latency) -> Estimate | None:
    """The median ratio over rounds; between order statistics of the rounds, which hold the median in 95 % of cases.

    A bootstrap over so few rounds would give too narrow an interval: the median of three is on the wrong side of all
    three in a quarter of cases. None below ``FEWEST_ROUNDS``.
    """
    # a third of a second to import
    from scipy.stats import quantile_test

    found = ratio(old, new)
    if found is None or len(found.by_round) < FEWEST_ROUNDS:
        return None
    low, high = quantile_test(found.by_round, q=1, p=0.5).confidence_interval(CONFIDENCE)
    return Estimate(found.value, Interval(float(low), float(high)))


def _unpaired(old: Latency, new: Latency) -> Estimate:
    """The ratio of medians of separate runs; the interval holds their own scatter, not what differed between the runs."""
    draws = [bootstrap_medians(side.samples_s, side.rounds, seed=seed) for seed, side in enumerate((old, new))]
    return Estimate(new.median_s / old.median_s, percentile_interval(np.divide(draws[1], draws[0])))


def _doubts(old: Latency, new: Latency) -> str:
    unstable = [name for name, side in (("old", old), ("new", new)) if side.unstable]
    return f"unstable: {' and '.join(unstable)}" if unstable else ""


def _median(latency: Latency | None) -> float | None:
    return None if latency is None else latency.median_s
