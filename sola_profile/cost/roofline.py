"""Predicted time of every operator call from a machine's ceilings: a roofline with classes of kernels.

    time = max(work / rate, bytes / bandwidth) + fresh bytes / rate of first touch + cost of a call

*work / rate*: the rate of the call's family at its shape (``cost.families``). *bytes / bandwidth*: every operand read
once, every result written once, at the bandwidth of a working set of so many bytes. *First touch*: the system maps the
pages of a large new block when they are first written, in the thread that computes, so this adds. *Cost of a call*: what the
same operator takes when it has nothing to do. Views and modules cost their calls. Nothing is fitted on a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from sola_profile.cost.families import Place
from sola_profile.cost.recording import Call, Recording
from sola_profile.cost.reuse import Access, accesses
from sola_profile.families import ELEMENTWISE
from sola_profile.hardware import (
    CALL,
    FIRST_TOUCH,
    MODULE,
    NONE,
    PRODUCTS,
    SCALARS,
    TRAFFIC,
    VIEW,
    Machine,
    Span,
)

COMPUTE, MEMORY, OVERHEAD = "compute", "memory", "overhead"
BOUNDS = (COMPUTE, MEMORY, OVERHEAD)

# an element-wise operator without a rate of its own is taken for this one
ANY_ELEMENTWISE = f"{ELEMENTWISE}add"


@dataclass(frozen=True)
class CallTime:
    """Predicted seconds of one call. ``compute``: of its work; ``traffic``: of its bytes; both may overlap, and the longer counts.

    ``first_touch`` and ``overhead`` come on top. ``like``: the family whose rate was taken for want of its own.
    ``uncounted``: the machine has no rate for the call, and its work is not in the time.
    """

    call: Call
    compute: Span
    traffic: Span
    first_touch: Span
    overhead: Span
    like: str = ""
    uncounted: bool = False

    @property
    def time(self) -> Span:
        """All of it."""
        return self.compute.at_least(self.traffic) + self.first_touch + self.overhead

    @cached_property
    def bound(self) -> str:
        """What takes most: ``compute``, ``memory`` (bytes and first touch) or ``overhead``."""
        memory_s = self.first_touch.middle + (self.traffic.middle if self.traffic.middle > self.compute.middle else 0)
        compute_s = self.compute.middle if self.compute.middle >= self.traffic.middle else 0
        shares = {COMPUTE: compute_s, MEMORY: memory_s, OVERHEAD: self.overhead.middle}
        return max(shares, key=lambda bound: shares[bound])


@dataclass(frozen=True)
class ModelTime:
    """Predicted time of a forward pass. ``rest``: of views and of Python's way through the modules."""

    calls: tuple[CallTime, ...]
    rest: Span

    @cached_property
    def total(self) -> Span:
        """Sum over everything; the ends add up as if all ceilings were off in the same direction."""
        return total(self.calls) + self.rest

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """Share of the time by what bounds it."""
        times = {bound: sum(c.time.middle for c in self.calls if c.bound == bound) for bound in BOUNDS}
        times[OVERHEAD] += self.rest.middle
        # added up in the same order, so that no share exceeds the whole by a rounding
        whole = sum(times.values())
        return {bound: time_s / whole if whole else 0.0 for bound, time_s in times.items()}

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Operators whose work is not in the time."""
        return tuple(sorted({time.call.operator for time in self.calls if time.uncounted}))

    def grouped(self, key: Callable[[Call], str]) -> dict[str, list[CallTime]]:
        """Calls by a property, in the order in which its values first appear."""
        groups: dict[str, list[CallTime]] = {}
        for time in self.calls:
            groups.setdefault(key(time.call), []).append(time)
        return groups


def total(times: Iterable[CallTime]) -> Span:
    """The sum of some calls."""
    return sum((time.time for time in times), start=NONE)


def predict_times(recording: Recording, machine: Machine) -> ModelTime:
    """Times of all calls of a recording of one size on a machine."""
    found = accesses(recording.events, len(recording.calls))
    calls = tuple(_predict(call, access, machine) for call, access in zip(recording.calls, found, strict=True))
    rest = _cost(machine, VIEW).times(recording.views) + _cost(machine, MODULE).times(recording.modules)
    return ModelTime(calls, rest)


def _predict(call: Call, access: Access, machine: Machine) -> CallTime:
    place = call.place
    overhead = _overhead(call, machine)
    if call.kind == "view" or place is None:
        return CallTime(call, NONE, NONE, NONE, overhead, uncounted=not call.kind)
    touched = sum(size for size, _ in access.touched)
    # what a call touches itself passes through the caches too
    traffic = sum((_traffic(size, distance + touched, machine) for size, distance in access.touched), start=NONE)
    traffic += _traffic(place.passes_bytes, place.passes_bytes, machine)
    first_touch = _first_touch(access.new_bytes, machine)
    family, like = _family(place, call, machine)
    rate = machine.rate(family, place.shape) if family else None
    compute = _over(place.amount, rate) if rate is not None else _at_peak(call, machine)
    # an operator that only moves data needs no rate of its own
    uncounted = rate is None and (not call.kind or (bool(call.work.macs) and PRODUCTS not in machine.surfaces))
    if place.before is not None and (copy := machine.rate(place.before.family, place.before.shape)) is not None:
        compute += _over(place.before.amount, copy)
    return CallTime(call, compute, traffic, first_touch, overhead, like, uncounted)


def _at_peak(call: Call, machine: Machine) -> Span:
    """Time of a call's work where only peaks are known; products and scalar operations one after the other."""
    amounts = {PRODUCTS: 2 * call.work.macs, SCALARS: sum(call.work.scalar_ops.values())}
    rates = {name: machine.rate(name, {}) for name in amounts}
    return sum((_over(amounts[name], rate) for name, rate in rates.items() if rate is not None), start=NONE)


def _family(place: Place, call: Call, machine: Machine) -> tuple[str, str]:
    """The family whose rate speaks for a call, and its name again where it is not the call's own."""
    if place.family in machine.surfaces:
        return place.family, ""
    if place.family.startswith(ELEMENTWISE) and call.kind and ANY_ELEMENTWISE in machine.surfaces:
        return ANY_ELEMENTWISE, ANY_ELEMENTWISE
    return "", ""


def _overhead(call: Call, machine: Machine) -> Span:
    own = f"{CALL}: {call.place.family}" if call.place is not None else CALL
    return _cost(machine, own if own in machine.surfaces else CALL)


def _cost(machine: Machine, name: str) -> Span:
    return machine.rate(name, {}) or NONE


def _over(amount: float, rate: Span) -> Span:
    return Span(amount / rate.high, amount / rate.middle, amount / rate.low)


def _traffic(size_bytes: int, distance: float, machine: Machine) -> Span:
    if not size_bytes:
        return NONE
    rate = machine.rate(TRAFFIC, {"bytes": distance})
    return NONE if rate is None else _over(size_bytes, rate)


def _first_touch(size_bytes: int, machine: Machine) -> Span:
    rate = machine.rate(FIRST_TOUCH, {})
    return NONE if rate is None else _over(size_bytes, rate)
