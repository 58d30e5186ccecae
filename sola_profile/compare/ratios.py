"""How much faster: ratios of times that were taken in the same rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sola_profile.measure.latency import Latency
from sola_profile.measure.statistics import Interval, bootstrap_medians, percentile_interval

FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Ratio:
    """Time of a peer over ours, so above 1 ours is faster: the median over rounds, with a 95 % interval.

    The interval is None where there are fewer than ``FEWEST_ROUNDS`` rounds. ``by_round``: the ratio of the medians within every round that both have; a round is short, so what else the
    machine did in it slowed both.
    """

    value: float
    interval: Interval | None
    by_round: tuple[float, ...]


def ratio(ours: Latency, peer: Latency) -> Ratio | None:
    """The ratio of two latencies that were sampled in turn; None when they share no round."""
    mine, theirs = _by_round(ours), _by_round(peer)
    values = [theirs[number] / mine[number] for number in sorted(mine.keys() & theirs.keys())]
    if not values:
        return None
    interval = None
    if len(values) >= FEWEST_ROUNDS:
        interval = percentile_interval(bootstrap_medians(values, range(len(values))))
    return Ratio(float(np.median(values)), interval, tuple(values))


def _by_round(latency: Latency) -> dict[int, float]:
    rounds, times = np.asarray(latency.rounds), np.asarray(latency.samples_s)
    return {int(number): float(np.median(times[rounds == number])) for number in np.unique(rounds)}
