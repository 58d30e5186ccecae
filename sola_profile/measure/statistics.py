"""Robust statistics of few, noisy, correlated timings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 1000
# with fewer rounds there are too few different resamples of rounds; single samples are resampled then
FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Interval:
    """An interval, of 95 % unless said otherwise."""

    low: float
    high: float

    def relative_half_width(self, middle: float) -> float:
        """Half the width over the middle: 0.03 reads ± 3 %."""
        return (self.high - self.low) / 2 / middle if middle else float("inf")


def percentile_interval(values: npt.ArrayLike) -> Interval:
    """The central 95 % of resampled values."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.asarray(values, dtype=np.float64), [tail, 100 - tail])
    return Interval(float(low), float(high))


def bootstrap_medians(samples: Sequence[float], rounds: Sequence[int], seed: int = 0) -> Floats:
    """Medians of resampled samples, ``RESAMPLES`` of them.

    Samples of one round share the state of the machine (clock, caches, neighbours), so whole rounds are drawn with
    replacement (a cluster bootstrap); treating the samples as independent would give too narrow an interval.
    """
    if len(samples) != len(rounds) or not samples:
        raise ValueError(f"samples: expected one round each and at least one, got {len(samples)} and {len(rounds)}")
    values = np.asarray(samples, dtype=np.float64)
    generator = np.random.default_rng(seed)
    names, members = np.unique(np.asarray(rounds), return_inverse=True)
    if len(names) < FEWEST_ROUNDS:
        members = np.arange(len(values))
    groups = [values[members == group] for group in range(members.max() + 1)]
    draws = generator.integers(len(groups), size=(RESAMPLES, len(groups)))
    if len({len(group) for group in groups}) == 1:
        resampled: Floats = np.median(np.stack(groups)[draws].reshape(RESAMPLES, -1), axis=1)
        return resampled
    return np.array([np.median(np.concatenate([groups[group] for group in draw])) for draw in draws])


def median_interval(samples: Sequence[float], rounds: Sequence[int]) -> Interval:
    """Bootstrap interval of the median."""
    return percentile_interval(bootstrap_medians(samples, rounds))


def rolling_median_settled(values: Sequence[float], window: int, tolerance: float) -> bool:
    """Whether the median of the last ``window`` values is within ``tolerance`` of that of the window before it."""
    if len(values) < 2 * window:
        return False
    earlier, latest = float(np.median(values[-2 * window : -window])), float(np.median(values[-window:]))
    return abs(latest - earlier) <= tolerance * earlier
