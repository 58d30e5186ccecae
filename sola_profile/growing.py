"""How the rows of a sweep grow with N, and from which N one model costs more than another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sola_profile.compare.growth_class import growth_class
from sola_profile.compare.overtaking import Crossover, crossover
from sola_profile.compare.scaling import Timings, fit_quadratic, local_slopes
from sola_profile.cost.polynomial import Complexity, Polynomial
from sola_profile.measure.statistics import bootstrap_medians
from sola_profile.result import Contender, Row, Scaling


def timings(rows: Sequence[Row]) -> Timings:
    """Measured latencies of one model, from few tokens to many."""
    timed = [(row.tokens, row.latency) for row in sorted(rows, key=lambda row: row.tokens) if row.latency is not None]
    return Timings(
        [tokens for tokens, _ in timed],
        [latency.median_s for _, latency in timed],
        [bootstrap_medians(latency.samples_s, latency.rounds) for _, latency in timed],
    )


def scaling(found: Complexity | None, rows: Sequence[Row], patch: int, stride: int) -> Scaling:
    """How the rows of one model grow. ``patch``: pixels a side of what N counts; ``stride``: sizes to name divide by it."""
    rows = sorted(rows, key=lambda row: row.tokens)
    timed = timings(rows)

    def side_of(tokens: float) -> int:
        return max(1, round(patch * float(tokens**0.5) / stride)) * stride

    return Scaling(
        complexity=found,
        macs_slopes=local_slopes([row.tokens for row in rows], [float(row.cost.macs) for row in rows]),
        latency_fit=fit_quadratic(timed.tokens, timed.medians_s, timed.resampled_s),
        latency_slopes=local_slopes(timed.tokens, timed.medians_s, timed.resampled_s),
        latency_class=growth_class(timed, side_of, lambda side: (side // patch) ** 2) if timed.tokens else None,
    )


def crossovers(contenders: Sequence[Contender]) -> Iterator[Crossover]:
    """The model beside every other one that has polynomials in the same N."""
    if not contenders:
        return
    model = contenders[0]
    for other in contenders[1:]:
        pair = _by_growth(model, other)
        if pair is None or model.patch != other.patch:
            continue
        dearer, cheaper = pair
        yield crossover(
            (dearer.role, cheaper.role),
            (_total(dearer), _total(cheaper)),
            (timings(dearer.rows), timings(cheaper.rows)),
        )


def _by_growth(one: Contender, other: Contender) -> tuple[Contender, Contender] | None:
    """The one that costs more in the long run first; None where that can't be said or they are the same."""
    if one.scaling.complexity is None or other.scaling.complexity is None:
        return None
    keys = [(total.a, total.b, total.c) for total in (_total(one), _total(other))]
    if keys[0] == keys[1]:
        return None
    return (one, other) if keys[0] > keys[1] else (other, one)


def _total(contender: Contender) -> Polynomial:
    assert contender.scaling.complexity is not None
    return contender.scaling.complexity.total
