"""What a machine can do at best: rates of operator families over shapes, measured or taken from data sheets.

A rate is known on a grid of shapes and interpolated between them, linearly in the logarithms; outside the grid the nearest
edge holds. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator

FLOPS, ELEMENTS, OPERATIONS, BYTES, SECONDS = "FLOP/s", "elements/s", "operations/s", "bytes/s", "s"

# surfaces that are no operator's: bytes/s of a copy by the bytes that it touches, and by the bytes of a fresh result
TRAFFIC, FIRST_TOUCH = "memory traffic", "first touch"
# and seconds: of a call, a view and a module with nothing to do
CALL, VIEW, MODULE = "operator call", "view", "module call"
# of machines that are known by their peaks: any matrix product, and scalar operations of any kind
PRODUCTS, SCALARS = "products", "scalar operations"

# bytes from which glibc maps a block anew every time, and of free memory that it gives back to the system, where both stop
# moving (mallopt(3), on 64 bits)
MMAP_THRESHOLD, TRIM_THRESHOLD = 2**25, 2**26


@dataclass(frozen=True)
class Span:
    """A value with the lowest and the highest that repeated measurements gave. Adds end by end."""

    low: float
    middle: float
    high: float

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.middle + other.middle, self.high + other.high)

    def times(self, factor: float) -> Span:
        """All three multiplied."""
        return Span(self.low * factor, self.middle * factor, self.high * factor)

    def at_least(self, other: Span) -> Span:
        """The larger of two, end by end."""
        return Span(max(self.low, other.low), max(self.middle, other.middle), max(self.high, other.high))


NONE = Span(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Surface:
    """Rates of one family. ``axes``: name → rising values; empty for one rate that holds everywhere.

    ``rates``: (low, middle, high) for every point of the grid, the last axis running fastest; in ``unit``.
    """

    unit: str
    axes: Mapping[str, Sequence[float]]
    rates: Sequence[tuple[float, float, float]]

    def at(self, place: Mapping[str, float]) -> Span:
        """The rate at a shape; raises ``KeyError`` for an axis that the shape doesn't name."""
        point = [
            np.log(min(max(place[name], values[0]), values[-1]))
            for name, values in self.axes.items()
            if len(values) > 1
        ]
        if not point:
            return Span(*self.rates[0])
        return Span(*np.exp(self._logarithms(point)[0]).tolist())

    @cached_property
    def _logarithms(self) -> RegularGridInterpolator:
        grid = [np.log(np.asarray(values, dtype=float)) for values in self.axes.values() if len(values) > 1]
        rates = np.log(np.asarray(self.rates, dtype=float)).reshape(*map(len, grid), 3)
        return RegularGridInterpolator(grid, rates)

    @property
    def best(self) -> float:
        """The highest middle of the grid."""
        return max(middle for _, middle, _ in self.rates)


def constant(unit: str, rate: float) -> Surface:
    """One rate that holds for every shape."""
    return Surface(unit, {}, ((rate, rate, rate),))


@dataclass(frozen=True)
class Machine:
    """The ceilings of one machine with one number of threads and one dtype.

    ``fingerprint``: what they depend on; of a machine that was not measured, its sources. ``surfaces``: family → rates.
    ``took_s``: time that measuring took. ``load_1min``: runnable threads before it, all users.
    """

    name: str
    measured: bool
    device: str
    dtype: str
    threads: int
    surfaces: Mapping[str, Surface]
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    measured_at: str = ""
    took_s: float = 0.0
    load_1min: float = 0.0

    @property
    def device_type(self) -> str:
        """``cpu``, ``cuda``, or ``accelerator`` of a data sheet."""
        return self.device.partition(":")[0]

    @property
    def crowded(self) -> bool:
        """Whether more threads wanted to run before it was measured than it has cores: rates may be off by any factor."""
        return bool(self.load_1min > self.fingerprint.get("logical_cores", inf))

    def rate(self, family: str, place: Mapping[str, float]) -> Span | None:
        """The rate of a family at a shape; None for a family that the machine has no figure for."""
        surface = self.surfaces.get(family)
        return None if surface is None else surface.at(place)
