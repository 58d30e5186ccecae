"""What a model costs as exact polynomials in the sides of its image, and how far they are proved.

Three routes, best first. *symbolic*: one pass with symbolic sides (``cost.recording``) gives every call's cost as a
polynomial; exact for every image whose sides divide by ``stride``, two strides at least, and meet the conditions that
were asked on the way.
*interpolated*: the model can't be run so, but its cost at three sizes fixes a quadratic in the number of positions, and
three further sizes, not square where the model takes such, confirm it to the last unit; it is used between the smallest
and the largest of them. *counted*: neither; every size is counted by itself.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import sympy
from sympy.polys.rings import PolyElement

from sola_profile.case import MAX_SIDE, Resolution
from sola_profile.cost.recording import Call, Recording, record_at, record_symbolic
from sola_profile.cost.symbols import COLUMNS, RING, ROWS, NotPolynomial
from sola_profile.cost.work import Size, Work
from sola_profile.memory import PeakMemory
from sola_profile.source import InputShape, ModelSource

SYMBOLIC, INTERPOLATED, COUNTED = "symbolic", "interpolated", "counted"

# most backbones divide their image by 32; others say by what else
STRIDE = 32
MOST_STRIDE = 1024
LIMIT_S = 60.0

FEWEST_STRIDES = 2

# sides in strides: three that fix a quadratic in the positions, three that test it
FITTED = ((4, 4), (7, 7), (10, 10))
PROOFS = ((16, 16), (5, 9), (12, 7))
SQUARE_PROOFS = ((16, 16), (5, 5), (12, 12))
PROVED = (4, 16)


@dataclass(frozen=True)
class Totals:
    """Work of some calls together: whole numbers, or polynomials in h and w. FLOPs are twice the MACs."""

    macs: Size
    scalar_ops: dict[str, Size]
    read_bytes: Size
    written_bytes: Size
    calls: int

    @property
    def all_scalar_ops(self) -> Size:
        """Scalar operations of all kinds."""
        return sum(self.scalar_ops.values(), start=0)

    @property
    def moved_bytes(self) -> Size:
        """Read and written."""
        return self.read_bytes + self.written_bytes

    def map(self, change: Callable[[Size], Any]) -> Totals:
        """The same with every quantity changed."""
        return Totals(
            change(self.macs),
            {name: change(value) for name, value in self.scalar_ops.items()},
            change(self.read_bytes),
            change(self.written_bytes),
            self.calls,
        )


def total(calls: Iterable[Call]) -> Totals:
    """The sum over some calls."""
    calls = list(calls)
    scalars: dict[str, Size] = {}
    for call in calls:
        for name, value in call.work.scalar_ops.items():
            scalars[name] = scalars.get(name, 0) + value
    return Totals(
        sum((call.work.macs for call in calls), start=0),
        scalars,
        sum((call.read_bytes for call in calls), start=0),
        sum((call.written_bytes for call in calls), start=0),
        len(calls),
    )


def grouped(calls: Iterable[Call], key: Callable[[Call], str]) -> dict[str, Totals]:
    """Totals by a property of the calls, in the order in which its values first appear."""
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(key(call), []).append(call)
    return {name: total(group) for name, group in groups.items()}


@dataclass(frozen=True)
class ModelFormula:
    """The cost of a model's forward pass, as far as it has a formula.

    ``recording``: calls with polynomials in h = H/stride and w = W/stride; on the counted route those of no size, None.
    ``why``: what stands against a better route. ``sized``: the model has to be built anew for every size. ``square``:
    it takes square images only. ``took_s``: time that finding it took.
    """

    source: ModelSource
    shape: InputShape
    dtype: str
    route: str
    why: str
    stride: int
    sized: bool
    square: bool
    took_s: float
    recording: Recording | None

    def covers(self, resolution: Resolution) -> bool:
        """Whether the formula speaks of this size: its sides divide by the stride, and nothing else excludes it."""
        sides = (resolution.height // self.stride, resolution.width // self.stride)
        if self.recording is None or resolution.height % self.stride or resolution.width % self.stride:
            return False
        if self.route == INTERPOLATED:
            square = resolution.height == resolution.width
            return all(PROVED[0] <= side <= PROVED[1] for side in sides) and (square or not self.square)
        # torch takes a symbol for 2 or more: a side of 1 makes views of copies
        return min(sides) >= FEWEST_STRIDES and all(condition(*sides) for condition in self._conditions)

    @cached_property
    def _conditions(self) -> tuple[Callable[[int, int], bool], ...]:
        assert self.recording is not None
        return tuple(map(_compiled, self.recording.conditions))

    def value(self, quantity: Size, resolution: Resolution) -> int:
        """A polynomial of this formula at a size that it covers; raises ``ValueError`` at others."""
        if not self.covers(resolution):
            raise ValueError(
                f"resolution: the formula doesn't cover {resolution}; it holds where both sides divide by {self.stride}"
                " and the model takes the way that it was found on"
            )
        return evaluate(quantity, resolution.height // self.stride, resolution.width // self.stride)

    def at(self, resolution: Resolution) -> Recording:
        """Calls at one size: from the formula where it covers the size, else counted; N counts the same in both."""
        pixels = (resolution.height, resolution.width)
        if self.recording is None or not self.covers(resolution):
            counted = record_at(self.source, self.shape, self.dtype, resolution, sized=self.sized)
            in_pixels = self.recording is not None and self.recording.patch == 1
            return replace(counted, grid=pixels) if in_pixels else counted
        sides = (resolution.height // self.stride, resolution.width // self.stride)
        calls = tuple(_mapped(call, lambda x: evaluate(x, *sides)) for call in self.recording.calls)
        moments = tuple((place, evaluate(size, *sides)) for place, size in self.recording.moments)
        input_bytes = evaluate(self.recording.input_bytes, *sides)
        grid = (pixels[0] // self.recording.patch, pixels[1] // self.recording.patch)
        return replace(self.recording, calls=calls, input_bytes=input_bytes, moments=moments, grid=grid)

    def memory(self, resolution: Resolution) -> PeakMemory:
        """Predicted peak memory of the forward pass at one size."""
        recording = self.at(resolution)
        if not recording.moments:
            recording = record_at(self.source, self.shape, self.dtype, resolution, sized=self.sized)
        return peak_of(recording)

    def largest_square(self, limit_bytes: int) -> Resolution | None:
        """The largest square image on the lattice whose predicted peak fits; None where none does.

        Raises ``ValueError`` where memory has no formula.
        """
        if self.recording is None or not self.recording.moments:
            raise ValueError(f"memory: {self.source.name} has no formula for its memory, only figures of single sizes")
        recording = self.recording

        def fits(strides: int) -> bool:
            moments = [evaluate(size, strides, strides) for _, size in recording.moments]
            input_bytes = evaluate(recording.input_bytes, strides, strides)
            return recording.static_bytes + input_bytes + max(moments) <= limit_bytes

        low, high = FEWEST_STRIDES - 1, MAX_SIDE // self.stride
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return Resolution(low * self.stride, low * self.stride) if low >= FEWEST_STRIDES else None

    @cached_property
    def total(self) -> Totals | None:
        """The sum over all calls, as polynomials."""
        return None if self.recording is None else total(self.recording.calls)


def peak_of(recording: Recording) -> PeakMemory:
    """The highest moment of a recording of one size."""
    # a model without operators has no moment
    place, step_bytes = max(recording.moments, key=lambda moment: moment[1], default=("", 0))
    return PeakMemory(recording.static_bytes, recording.input_bytes, step_bytes, place)


def _compiled(condition: sympy.Basic) -> Callable[[int, int], bool]:
    """A condition as a function of h and w; one that can't be worked out is not met."""
    names = sympy.symbols("h w")
    quick = sympy.lambdify(names, condition, modules=[_FUNCTIONS, "math"])

    def met(rows: int, columns: int) -> bool:
        try:
            return bool(quick(rows, columns))
        except (NameError, TypeError, ArithmeticError):
            return False

    return met


# torch's functions of sizes
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "CeilToInt": math.ceil,
    "FloorToInt": math.floor,
    "TruncToInt": math.trunc,
    "ToFloat": float,
    "Max": max,
    "Min": min,
}


def evaluate(quantity: Size, rows: int, columns: int) -> int:
    """A polynomial in h and w, or a plain number, at whole h and w."""
    if not isinstance(quantity, PolyElement):
        return int(quantity)
    # one pass over the monomials: sympy's own evaluation makes a smaller ring first and takes ten times as long
    value = sum(
        coefficient.numerator * rows**a * columns**b * (_common(quantity) // coefficient.denominator)
        for (a, b), coefficient in quantity.terms()
    )
    whole, rest = divmod(value, _common(quantity))
    if rest:
        raise ArithmeticError(f"{quantity} is no whole number at h = {rows}, w = {columns}")
    return int(whole)


def _common(quantity: PolyElement) -> int:
    return math.lcm(*(int(coefficient.denominator) for coefficient in quantity.coeffs()))


def model_formula(
    source: ModelSource, shape: InputShape | None = None, dtype: str = "float32", limit_s: float = LIMIT_S
) -> ModelFormula:
    """Find the best route for a model within about ``limit_s`` seconds."""
    shape = shape or InputShape()
    start = time.monotonic()

    def left_s() -> float:
        return start + limit_s - time.monotonic()

    def finished(route: str, why: str, stride: int, found: _Found | None) -> ModelFormula:
        recording = found.recording if found else None
        sized, square = (found.sized, found.square) if found else (route == COUNTED, False)
        took_s = time.monotonic() - start
        return ModelFormula(source, shape, dtype, route, why, stride, sized, square, took_s, recording)

    stride, why = STRIDE, ""
    while stride <= MOST_STRIDE:
        try:
            recording = record_symbolic(source, shape, dtype, stride, left_s())
            return finished(SYMBOLIC, "", stride, _Found(merged(recording), sized=False, square=False))
        except NotPolynomial as reason:
            why = why or str(reason)
            # a window of 7 in a map of 8·h needs h to divide by 7
            larger = math.lcm(stride, STRIDE * reason.divisor)
            if larger == stride:
                break
            stride = larger
    strides = [size for size in (STRIDE, stride) if size <= MOST_STRIDE]
    for size in dict.fromkeys(strides):
        found = _interpolate(source, shape, dtype, size, left_s)
        if found is not None:
            return finished(INTERPOLATED, why, size, found)
    return finished(COUNTED, why, STRIDE, None)


@dataclass(frozen=True)
class _Found:
    recording: Recording
    sized: bool
    square: bool


def merged(recording: Recording) -> Recording:
    """The same with calls of one operator in one module added up, in the order of their first."""
    groups: dict[tuple[str, str, str], list[Call]] = {}
    for call in recording.calls:
        groups.setdefault((call.operator, call.module, call.kind), []).append(call)
    calls = []
    for (name, module, kind), group in groups.items():
        whole = total(group)
        number = sum(call.number for call in group)
        work = Work(whole.macs, whole.scalar_ops, group[0].work.kind)
        calls.append(Call(name, module, kind, work, whole.read_bytes, whole.written_bytes, number))
    return replace(recording, calls=tuple(calls))


def _interpolate(
    source: ModelSource, shape: InputShape, dtype: str, stride: int, left_s: Callable[[], float]
) -> _Found | None:
    """A quadratic in h·w through three sizes that three others confirm; None without one, or without the time."""

    def counted(sides: tuple[int, int], sized: bool) -> Recording | None:
        if left_s() <= 0:
            return None
        resolution = Resolution(sides[0] * stride, sides[1] * stride)
        try:
            return merged(record_at(source, shape, dtype, resolution, sized=sized))
        except Exception:
            return None

    for sized in (False, True):
        fitted = [counted(sides, sized) for sides in FITTED]
        if any(recording is None for recording in fitted):
            continue
        square = counted(PROOFS[1], sized) is None
        proofs = SQUARE_PROOFS if square else PROOFS
        found = _fit([recording for recording in fitted if recording is not None])
        if found is not None and all(_agrees(found, counted(sides, sized), sides) for sides in proofs):
            return _Found(found, sized, square)
    return None


def _fit(recordings: Sequence[Recording]) -> Recording | None:
    """Calls with quadratics through all recordings; None when their calls aren't the same."""
    counts = [rows * columns for rows, columns in FITTED]
    first = recordings[0]
    names = [[(call.operator, call.module, call.kind) for call in recording.calls] for recording in recordings]
    if any(other != names[0] for other in names):
        return None
    calls = []
    for same in zip(*(recording.calls for recording in recordings), strict=True):

        def through(pick: Callable[[Call], Size], same: tuple[Call, ...] = same) -> Size:
            return _lagrange(counts, [pick(call) for call in same])

        scalars = {
            name: through(lambda call, name=name: call.work.scalar_ops.get(name, 0))  # type: ignore[misc]
            for name in same[0].work.scalar_ops
        }
        work = Work(through(lambda call: call.work.macs), scalars, same[0].work.kind)
        head = same[0]
        read, written = through(lambda call: call.read_bytes), through(lambda call: call.written_bytes)
        calls.append(Call(head.operator, head.module, head.kind, work, read, written, head.number))
    # which moment is the peak changes with the size, so memory is not interpolated
    return replace(first, calls=tuple(calls), input_bytes=0, moments=())


def _lagrange(places: Sequence[int], values: Sequence[int]) -> PolyElement:
    """The polynomial in n = h·w through all points."""
    positions, result = ROWS * COLUMNS, RING(0)
    for i, value in enumerate(values):
        basis, scale = RING(1), Fraction(value)
        for j, place in enumerate(places):
            if i != j:
                basis *= positions - place
                scale /= places[i] - place
        result += basis * RING.domain(scale.numerator, scale.denominator)
    return result


def _agrees(found: Recording, counted: Recording | None, sides: tuple[int, int]) -> bool:
    if counted is None or len(counted.calls) != len(found.calls):
        return False
    return all(
        _mapped(formula, lambda quantity: _value_or_none(quantity, sides)) == call
        for formula, call in zip(found.calls, counted.calls, strict=True)
    )


def _value_or_none(quantity: Size, sides: tuple[int, int]) -> int | None:
    try:
        return evaluate(quantity, *sides)
    except ArithmeticError:
        return None


def _mapped(call: Call, change: Callable[[Size], Any]) -> Call:
    scalars = {name: change(value) for name, value in call.work.scalar_ops.items()}
    work = Work(change(call.work.macs), scalars, call.work.kind)
    read, written = change(call.read_bytes), change(call.written_bytes)
    return Call(call.operator, call.module, call.kind, work, read, written, call.number)
