"""What a handful of seeds can and can't tell about two patterns.

Runs of one seed share their first weights as far as these fit, their training samples and their order, so patterns are
compared seed by seed. Five seeds are few: intervals of differences are Student's, tests are adjusted by Holm's method for
the number of patterns, and where nothing is separated the number of seeds that would be is given.
Sources: Efron, Bootstrap Methods (1979); Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979); Bouthillier
et al., Accounting for Variance in Machine Learning Benchmarks, arXiv 2103.03098.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

from sola_profile.measure.statistics import Interval, percentile_interval

# of all tests of one reference together
LEVEL = 0.05
POWER = 0.8
RESAMPLES = 10_000
# more seeds than this are no plan
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Difference:
    """Pattern minus reference over the seeds that both have.

    ``p``: two-sided paired t-test; ``adjusted_p``: the same by Holm's method over the patterns that are compared.
    ``interval``: Student's, not adjusted. ``seeds_needed``: pairs with which a difference as large as the one seen, with
    the scatter seen, is found with a power of 80 % at the level that Holm's method asks of its first step; None where the
    difference is 0 or would need more than ``MOST_SEEDS``.
    """

    mean: float
    interval: Interval
    p: float
    adjusted_p: float
    seeds: int
    seeds_needed: int | None

    @property
    def separated(self) -> bool:
        """Whether the two differ at the 5 % level, all comparisons taken together."""
        return self.adjusted_p < LEVEL


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """95 % percentile interval of the mean, resampling seeds; None for fewer than two. Always the same for the same values."""
    if len(values) < 2:
        return None
    data = np.asarray(values)
    generator = np.random.default_rng(0)
    means = data[generator.integers(len(data), size=(RESAMPLES, len(data)))].mean(1)
    return percentile_interval(means)


def differences(pairs: Sequence[Sequence[float]]) -> list[Difference | None]:
    """One difference per pattern from its paired differences; None for fewer than two seeds."""
    enough = [number for number, each in enumerate(pairs) if len(each) >= 2]
    raw = [_p_value(pairs[number]) for number in enough]
    adjusted = dict(zip(enough, holm(raw), strict=True))
    return [
        _difference(each, adjusted[number], len(enough)) if number in adjusted else None
        for number, each in enumerate(pairs)
    ]


def _difference(values: Sequence[float], adjusted_p: float, comparisons: int) -> Difference:
    mean, deviation, seeds = float(np.mean(values)), float(np.std(values, ddof=1)), len(values)
    half = float(stats.t.ppf(1 - LEVEL / 2, seeds - 1)) * deviation / sqrt(seeds)
    needed = seeds_needed(mean, deviation, LEVEL / comparisons)
    return Difference(mean, Interval(mean - half, mean + half), _p_value(values), adjusted_p, seeds, needed)


def _p_value(values: Sequence[float]) -> float:
    """Two-sided p of a mean of 0, by Student's t; without scatter 1 for a mean of 0, else 0."""
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / (deviation / sqrt(len(values))), len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: the k-th smallest of m times m − k + 1, never falling, at most 1."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[int(index)] = largest
    return adjusted


def seeds_needed(mean: float, deviation: float, level: float) -> int | None:
    """Fewest pairs with which the paired t-test of this level finds ``mean`` with 80 % power; None if hopeless."""
    if mean == 0:
        return None
    if deviation == 0:
        return 2
    low, high = 2, MOST_SEEDS
    if power(abs(mean) / deviation, high, level) < POWER:
        return None
    # power rises with the number of pairs
    while low < high:
        middle = (low + high) // 2
        if power(abs(mean) / deviation, middle, level) < POWER:
            low = middle + 1
        else:
            high = middle
    return low


def power(effect: float, pairs: int, level: float) -> float:
    """Chance that the two-sided paired t-test rejects when the mean is ``effect`` standard deviations from 0.

    ``P(|T| > t_{1 − level/2})`` for T noncentral t with ``pairs − 1`` degrees of freedom and ``effect·√pairs``.
    """
    degrees, shift = pairs - 1, effect * sqrt(pairs)
    limit = stats.t.ppf(1 - level / 2, degrees)
    # far beyond the limit the noncentral t has no digits left, and the normal says the same
    if shift - limit > 30:
        return 1.0
    return float(stats.nct.sf(limit, degrees, shift) + stats.nct.cdf(-limit, degrees, shift))


@dataclass(frozen=True)
class RankAgreement:
    """Spearman's rank correlation of two lists with its permutation p; ``count``: how long they are."""

    correlation: float
    p: float
    count: int


def rank_agreement(ours: Sequence[float], theirs: Sequence[float]) -> RankAgreement | None:
    """How far two lists order the patterns alike; None for fewer than three, or where one list is all equal."""
    if len(ours) < 3 or len(set(ours)) == 1 or len(set(theirs)) == 1:
        return None
    second = stats.rankdata(theirs)

    def correlation(first: np.ndarray) -> float:
        return float(np.corrcoef(stats.rankdata(first), second)[0, 1])

    found = stats.permutation_test(
        (np.asarray(ours),), correlation, permutation_type="pairings", n_resamples=RESAMPLES, rng=0
    )
    return RankAgreement(float(found.statistic), float(found.pvalue), len(ours))


def standard_error(accuracy: float, samples: int) -> float:
    """``√(p(1 − p)/n)``: of an accuracy by the number of samples that it was measured on."""
    return sqrt(accuracy * (1 - accuracy) / samples)
