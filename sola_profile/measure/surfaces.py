"""Measures a machine: every family of probes over its grid of shapes, memory by size, and what a call costs at least.

Each rate is sampled twice in each of a few rounds, family by family, and that of a family with few shapes once more at the
end. What else runs on the machine only ever adds time, so that of the quickest quarter is the rate, and the fastest sample and
the median are its span. What a call with nothing to do takes is a ceiling of its own, and is taken off every probe.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sola_profile import families as names
from sola_profile.hardware import (
    BYTES,
    CALL,
    FIRST_TOUCH,
    MODULE,
    NONE,
    SECONDS,
    TRAFFIC,
    VIEW,
    Machine,
    Span,
    Surface,
)
from sola_profile.measure.allocator import settle_allocator
from sola_profile.measure.latency import Timer, timer_for
from sola_profile.measure.probes import FAMILIES, Family, Step

ROUNDS = 3
# a family of so few shapes is done in a moment
BRIEF = 12
SECOND_LOOK = "second look"
# a sample shorter than this would be the clock's
SHORTEST_S = 3e-4
MOST_CALLS = 200
# different numbers in the data of a probe
SOME = 2**18

# bytes read and written together by a copy, from what the first cache holds to what none does
TOUCHED = tuple(2**power for power in (15, 17, 19, 21, 22, 23, 24, 25, 26, 28))
# every C library gets a block this large from the system, and gives it back
FRESH_BYTES = 2**26
# a difference of two times below this share of them is noise
LEAST_SHARE = 0.02


@dataclass(frozen=True)
class Place:
    """Where probes run. ``device``: ``cpu`` or ``cuda:N``."""

    device: torch.device
    dtype: torch.dtype

    def tensor(self, *sides: int) -> Tensor:
        """Numbers between 0.1 and 1 without order, since pooling and sorting run faster over equal ones."""
        count = math.prod(sides)
        some = _numbers(self.device, self.dtype)
        return some.repeat(-(-count // SOME))[:count].reshape(sides)

    @property
    def timer(self) -> Timer:
        """The clock of the device."""
        return timer_for(self.device)


@cache
def _numbers(device: torch.device, dtype: torch.dtype) -> Tensor:
    numbers = 0.1 + 0.9 * torch.rand(SOME, generator=torch.Generator().manual_seed(0))
    return numbers.to(device, dtype)


def measure_surfaces(place: Place) -> Iterator[tuple[str, Surface | None]]:
    """Every surface by name, in the order in which they are measured; a name with None says what begins.

    A family that this device or dtype has no kernel for is left out.
    """
    with torch.inference_mode():
        settle_allocator()
        for name, measure in _COSTS.items():
            yield name, None
            yield name, measure(place)
        probings: list[_Probing] = []
        for family in FAMILIES:
            yield family.name, None
            try:
                begun = list(_begin(place, family))
            except (RuntimeError, NotImplementedError):
                continue
            probings += begun
        yield SECOND_LOOK, None
        for probing in probings:
            if probing.steps:
                probing.sample(place)
        plain_s = _call_surface(place, _ADDITION).rates[0][0]
    # the fastest: taking off more than a call costs would make the rate of what remains impossibly high
    calls = {probing.family.name: min(probing.times[0]) for probing in probings if probing.is_call}
    for probing in probings:
        yield probing.name, probing.surface(calls.get(probing.family.name, plain_s))


@dataclass
class _Probing:
    """The probes of one surface, and their times so far. ``steps``: none left where one look was enough."""

    family: Family
    steps: list[Step]
    work: list[float]
    is_call: bool = False
    times: list[list[float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The surface's name."""
        return f"{CALL}: {self.family.name}" if self.is_call else self.family.name

    def sample(self, place: Place) -> None:
        """Add a look at every shape."""
        new = rounds(place, self.steps)
        self.times = [before + now for before, now in zip(self.times, new, strict=True)] if self.times else new

    def surface(self, call_s: float) -> Surface:
        """Rates, without what a call takes."""
        if self.is_call:
            return _seconds(self.times[0])
        return _rates(self.family, self.work, self.times, call_s)


def _begin(place: Place, family: Family) -> Iterator[_Probing]:
    """A first look at a family; its probes are kept where all of that fell in one moment, which may have been a bad one."""
    if family.least is not None:
        step, work = _make(place, family, family.least)
        yield _looked(place, _Probing(family, [step], [work], is_call=True))
    made = [_make(place, family, shape) for shape in _points(family)]
    yield _looked(place, _Probing(family, [step for step, _ in made], [work for _, work in made]))


def _looked(place: Place, probing: _Probing) -> _Probing:
    probing.sample(place)
    if len(probing.steps) > BRIEF:
        probing.steps = []
    return probing


def _points(family: Family) -> list[dict[str, int]]:
    return [dict(zip(family.axes, values, strict=True)) for values in itertools.product(*family.axes.values())]


def _make(place: Place, family: Family, shape: Mapping[str, int]) -> tuple[Step, float]:
    return family.make(place.tensor, **{name.replace(" ", "_"): value for name, value in shape.items()})


def _rates(family: Family, work: Sequence[float], times: Sequence[Sequence[float]], call_s: float) -> Surface:
    spans = []
    for amount, samples in zip(work, times, strict=True):
        # the smallest shapes are all call; what is left of them is no less than a tenth
        low, middle, high = span([max(time - call_s, time / 10) for time in samples])
        spans.append((amount / high, amount / middle, amount / low))
    return Surface(family.unit, family.axes, tuple(spans))


def _call_surface(place: Place, family: Family) -> Surface:
    assert family.least is not None
    step, _ = _make(place, family, family.least)
    return _seconds(rounds(place, [step])[0])


def _seconds(samples: Sequence[float]) -> Surface:
    return Surface(SECONDS, {}, (span(samples),))


def span(samples: Sequence[float]) -> tuple[float, float, float]:
    """The fastest, the slowest of the fastest quarter (of six the second), the median."""
    ordered = sorted(samples)
    return ordered[0], ordered[len(ordered) // 4], ordered[len(ordered) // 2]


def rounds(place: Place, steps: Sequence[Step], number: int = ROUNDS) -> list[list[float]]:
    """Seconds per call of every step, two samples for every round; the steps take turns."""
    timer = place.timer
    calls = []
    for step in steps:
        step()
        call_s = _sample(timer, step, 1)
        if call_s < SHORTEST_S:
            # the first calls of a short step are slower than what they are repeated for
            call_s = _sample(timer, step, 5)
        calls.append(max(1, min(MOST_CALLS, round(SHORTEST_S / max(call_s, 1e-9)))))
    samples: list[list[float]] = [[] for _ in steps]
    for _ in range(number):
        for step, count, taken in zip(steps, calls, samples, strict=True):
            taken.extend(_sample(timer, step, count) for _ in range(2))
    return samples


def _sample(timer: Timer, step: Step, calls: int) -> float:
    """Seconds per call of so many calls."""

    def repeated() -> None:
        for _ in range(calls):
            step()

    return timer.time(repeated) / calls


def _traffic(place: Place, sizes: Sequence[int] = TOUCHED) -> Surface:
    """Bytes per second that a copy reads and writes together, by the bytes that it touches."""
    times: dict[int, list[float]] = {touched: [] for touched in sizes}
    # through all sizes twice, so that a bad moment of the machine isn't all that is known of one
    for touched in (*sizes, *sizes):
        source = torch.ones(touched // 2, dtype=torch.uint8, device=place.device)
        target = torch.zeros_like(source)
        times[touched] += rounds(place, [lambda s=source, t=target: t.copy_(s)], 2)[0]  # type: ignore[misc]
    spans = []
    for touched, samples in times.items():
        low, middle, high = span(samples)
        spans.append((touched / high, touched / middle, touched / low))
    return Surface(BYTES, {"bytes": sizes}, tuple(spans))


def _first_touch(place: Place) -> Surface:
    """Bytes per second at which the system hands out memory: writing a new block less writing an old one."""
    old = torch.ones(FRESH_BYTES, dtype=torch.uint8, device=place.device)
    steps: list[Step] = [lambda: torch.empty_like(old).fill_(1), lambda: old.fill_(1)]
    new_s, old_s = rounds(place, steps)
    pairs = zip(sorted(new_s), sorted(old_s), strict=True)
    extra = [max(new - before, LEAST_SHARE * new) for new, before in pairs]
    low, middle, high = span(extra)
    return Surface(BYTES, {}, ((FRESH_BYTES / high, FRESH_BYTES / middle, FRESH_BYTES / low),))


def _view(place: Place) -> Surface:
    x = place.tensor(2, 2)
    return _seconds(_on_host([lambda: x.transpose(0, 1)])[0])


def _module(place: Place) -> Surface:
    """Python's share of calling a module that does nothing."""
    module, x = nn.Identity(), place.tensor(1)
    return _seconds(_on_host([lambda: module(x)])[0])


def _call(place: Place) -> Surface:
    return _call_surface(place, _ADDITION)


def _on_host(steps: Sequence[Step]) -> list[list[float]]:
    """Nothing of these runs on a device."""
    return rounds(Place(torch.device("cpu"), torch.float32), steps)


def _add(tensor: Any) -> tuple[Step, float]:
    x = tensor(1)
    return lambda: x + x, 1.0


_ADDITION = Family("addition", SECONDS, _add, least={})
_COSTS: Mapping[str, Callable[[Place], Surface]] = {
    TRAFFIC: _traffic,
    FIRST_TOUCH: _first_touch,
    # after half a second of work, in which clocks and caches have settled
    CALL: _call,
    VIEW: _view,
    MODULE: _module,
}


@dataclass(frozen=True)
class Drift:
    """A rate that isn't what it was. ``ratio``: now over then, of the ends of their spans that face each other."""

    name: str
    ratio: float


# off by more than this, ceilings no longer hold
TOLERANCE = 0.2
# what the second cache holds: between caches a rate depends on the neighbours
CHECKED_BYTES = 2**19
# a rate of each sort: products, convolutions, attention, exponentials, memory, calls
CHECKED: Mapping[str, Mapping[str, int]] = {
    names.LINEAR: {"rows": 400, "inner": 320, "columns": 320},
    names.CONVOLUTION: {"channels in": 48, "channels out": 48, "stride": 1, "positions": 3000},
    names.SDPA: {"queries": 300, "keys": 300, "dim": 48},
    f"{names.ELEMENTWISE}exp": {},
}


def spot_check(place: Place, machine: Machine) -> list[Drift]:
    """Rates that have moved by more than a fifth, in about half a second; a moment's disturbance is given a second look."""
    drifts = _drifts(place, machine, [*CHECKED, TRAFFIC, CALL])
    return _drifts(place, machine, [drift.name for drift in drifts]) if drifts else []


def _drifts(place: Place, machine: Machine, checked: Sequence[str]) -> list[Drift]:
    found = []
    with torch.inference_mode():
        settle_allocator()
        for name in checked:
            then = machine.rate(name, CHECKED.get(name, {"bytes": CHECKED_BYTES}))
            if then is not None:
                ratio = _apart(Span(*_rate_now(place, name, machine)), then)
                if not 1 / (1 + TOLERANCE) <= ratio <= 1 + TOLERANCE:
                    found.append(Drift(name, ratio))
    return found


def _apart(now: Span, then: Span) -> float:
    """How far two spans are apart: 1 where they overlap, else the ratio of the ends that face each other."""
    if now.high < then.low:
        return now.high / then.low
    return now.low / then.high if now.low > then.high else 1.0


def _rate_now(place: Place, name: str, machine: Machine) -> tuple[float, float, float]:
    if name == CALL:
        return _call(place).rates[0]
    if name == TRAFFIC:
        return _traffic(place, [CHECKED_BYTES]).rates[0]
    family = next(family for family in FAMILIES if family.name == name)
    calls = machine.rate(f"{CALL}: {name}", {}) or machine.rate(CALL, {}) or NONE
    one = replace(family, axes={axis: (value,) for axis, value in CHECKED[name].items()})
    made = [_make(place, one, shape) for shape in _points(one)]
    times = rounds(place, [step for step, _ in made])
    return _rates(one, [work for _, work in made], times, calls.middle).rates[0]
