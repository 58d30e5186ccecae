"""Which FLOP counters can be trusted on this torch? Every spelling of attention through every counter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sola_profile.cost.recording import record_module
from sola_profile.cost.symbolic import total
from sola_profile.errors import first_line
from sola_profile.measure.spellings import (
    FORWARD,
    SPELLINGS,
    Spelling,
    flop_counter_on_cpu,
    flop_counter_on_meta,
    fvcore_on_cpu,
    fvcore_on_meta,
    profiler_on_cpu,
    shape_for,
)


@dataclass(frozen=True)
class Counter:
    """``macs``: what it finds for a spelling, None where it doesn't speak of it. ``relied_on``: whether witnesses use it.

    ``excused``: spellings that it is known to get wrong; the witness table says so when a model has them.
    """

    name: str
    macs: Callable[[Spelling], float | None]
    relied_on: bool
    excused: Collection[str] = ()


@dataclass(frozen=True)
class Outcome:
    """``shares``: counter → its MACs over the true ones, None where it doesn't count. ``failed``: counter → error."""

    spelling: Spelling
    shares: Mapping[str, float | None]
    failed: Mapping[str, str]


def _formulas(spelling: Spelling) -> float | None:
    if spelling.mode != FORWARD:
        return None
    return float(total(record_module(spelling.make, shape_for(spelling)).calls).macs)


# it has no handle for fused attention, and reads the cost of an einsum off a text with four digits
FVCORE_EXCUSED = (
    "F.scaled_dot_product_attention",
    "nn.MultiheadAttention",
    "einsum, softmax, einsum",
    "linear attention with einsum",
)

COUNTERS: Sequence[Counter] = (
    Counter("formulas", _formulas, relied_on=True),
    Counter("FlopCounter meta", flop_counter_on_meta, relied_on=True),
    Counter(
        "fvcore meta",
        fvcore_on_meta,
        relied_on=True,
        excused=FVCORE_EXCUSED,
    ),
    Counter("FlopCounter CPU", flop_counter_on_cpu, relied_on=False),
    Counter("fvcore CPU", fvcore_on_cpu, relied_on=False),
    Counter("profiler", profiler_on_cpu, relied_on=False),
)


def run(counters: Sequence[Counter] = COUNTERS) -> Iterator[Outcome]:
    """Ask every counter about every spelling."""
    for spelling in SPELLINGS:
        shares: dict[str, float | None] = {}
        failed: dict[str, str] = {}
        for counter in counters:
            try:
                macs = counter.macs(spelling)
            except Exception as error:
                shares[counter.name] = None
                failed[counter.name] = first_line(error)
            else:
                shares[counter.name] = None if macs is None else macs / spelling.macs
        yield Outcome(spelling, shares, failed)


def untrusted(outcomes: Sequence[Outcome], counters: Sequence[Counter] = COUNTERS) -> Iterator[str]:
    """What speaks against counters that this project relies on."""
    for counter in counters:
        for outcome in outcomes:
            spelling = outcome.spelling
            if not counter.relied_on or spelling.name in counter.excused:
                continue
            if counter.name in outcome.failed:
                yield f"{counter.name} failed on {spelling}: {outcome.failed[counter.name]}"
            elif outcome.shares[counter.name] not in (None, 1.0):
                yield f"{counter.name} finds {outcome.shares[counter.name]:.1%} of {spelling}"
