"""Where one curve of times overtakes another: which N to measure next, and where the ratio passes 1."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log

from sola_profile.compare.ratios import Ratio
from sola_profile.measure.statistics import Interval

FIRST_TOKENS = 64
FEWEST_TOKENS, MOST_TOKENS = 4, 8192
# two sizes this close enclose the crossing well enough for a straight line between them
CLOSE = 1.3


def bracket(points: Mapping[int, Ratio]) -> tuple[int, int] | None:
    """The sizes on both sides of the crossing, below 1 and from 1 on; None before there are both."""
    above = [tokens for tokens, ratio in points.items() if ratio.value >= 1]
    below = [tokens for tokens, ratio in points.items() if ratio.value < 1]
    # noise can put a size on the wrong side; the smallest crossing upwards counts
    pairs = [(low, high) for high in above for low in below if low < high]
    return min(pairs, key=lambda pair: (pair[1], -pair[0])) if pairs else None


def next_tokens(points: Mapping[int, Ratio]) -> int | None:
    """The N to measure next: doubled or halved until the crossing is enclosed, then between; None when it is found.

    ``points``: N → time of the one that grows faster over time of the other.
    """
    if not points:
        return FIRST_TOKENS
    found = bracket(points)
    if found is not None:
        low, high = found
        middle = round((low * high) ** 0.5)
        return None if high / low <= CLOSE or middle in points else middle
    if points[min(points)].value >= 1:
        smaller = min(points) // 2
        return smaller if smaller >= FEWEST_TOKENS else None
    larger = 2 * max(points)
    return larger if larger <= MOST_TOKENS else None


def crossing(points: Mapping[int, Ratio]) -> tuple[float, Interval | None] | None:
    """The N at which the ratio is 1, with the interval that those of the two ratios around it give, if they have any.

    Between the two sizes the logarithm of the ratio is taken to be linear in that of N. None when no sizes enclose it.
    """
    found = bracket(points)
    if found is None:
        return None
    low, high = found
    first, second = points[low], points[high]
    middle = _line(low, first.value, high, second.value)
    if first.interval is None or second.interval is None:
        return middle, None
    # ratios at the upper end of their intervals cross 1 earlier
    early = _line(low, first.interval.high, high, second.interval.high)
    late = _line(low, first.interval.low, high, second.interval.low)
    return middle, Interval(min(early, middle), max(late, middle))


def _line(low: int, ratio_low: float, high: int, ratio_high: float) -> float:
    """Where the straight line through two points of (log N, log ratio) reaches 0; not further than one more step."""
    rise = log(ratio_high) - log(ratio_low)
    step = log(high) - log(low)
    share = -log(ratio_low) / rise if rise > 0 else 0.5
    return exp(log(low) + min(max(share, -1.0), 2.0) * step)
