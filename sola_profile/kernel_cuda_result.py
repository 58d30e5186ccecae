"""What ``sola-profile kernels --device cuda`` finds, as data. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

from sola_profile.kernel_targets import FeatureCase, ModelTarget, RouteCase, Target

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Timing:
    """One route of a case. ``missing``: why there are no samples. ``difference``: from the first route, ‖a − b‖ / ‖b‖."""

    name: str
    samples_s: tuple[float, ...] = ()
    difference: float | None = None
    missing: str = ""

    @property
    def median_s(self) -> float | None:
        """None without samples."""
        return median(self.samples_s) if self.samples_s else None


@dataclass(frozen=True)
class Row:
    """A target, and what was reached: None where it wasn't measured."""

    target: Target | ModelTarget
    timings: tuple[Timing, ...] = ()
    reached: float | None = None

    @property
    def met(self) -> bool | None:
        """None without a figure or without a wish."""
        return None if self.reached is None or self.target.wanted is None else self.reached >= self.target.wanted


@dataclass(frozen=True)
class RouteRow:
    """Softmax attention's forward at one size by each backend; ``timings`` are named after these, ours first."""

    case: RouteCase
    timings: tuple[Timing, ...] = ()


WITH, WITHOUT = "with", "without"
# results further apart than roundings explain, ‖a − b‖ / ‖b‖, are a mistake, however fast
MOST_DIFFERENT = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 3e-3}


@dataclass(frozen=True)
class FeatureRow:
    """A call of our kernels with a feature and without; ``timings`` are named so, in this order.

    The second has the difference of the two, of outputs and gradients the largest.
    """

    case: FeatureCase
    timings: tuple[Timing, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether both are known to compute the same."""
        differences = [timing.difference for timing in self.timings if timing.name == WITHOUT]
        most = MOST_DIFFERENT[self.case.kernel.dtype]
        return any(difference is not None and difference <= most for difference in differences)

    @property
    def gain(self) -> float | None:
        """Time without it over time with it; None unless both were measured and compute the same."""
        found = {timing.name: timing.median_s for timing in self.timings}
        with_s, without_s = found.get(WITH), found.get(WITHOUT)
        return None if with_s is None or without_s is None or not self.agrees else without_s / with_s


AnyRow = Row | RouteRow | FeatureRow


@dataclass(frozen=True)
class CudaReport:
    """``copy_bytes_per_s``: read and written, together. ``matmul_flops_per_s``: bfloat16, 2 per multiply-accumulate.

    ``features_off``: what our kernels were kept from throughout.
    """

    device: str
    torch: str
    cuda: str | None
    capability: str
    copy_bytes_per_s: float | None
    matmul_flops_per_s: float | None
    rows: tuple[Row, ...]
    routes: tuple[RouteRow, ...] = ()
    features: tuple[FeatureRow, ...] = ()
    features_off: tuple[str, ...] = ()

    def all_rows(self) -> tuple[AnyRow, ...]:
        """Targets, features and backends."""
        return (*self.rows, *self.features, *self.routes)

    def with_row(self, place: int, row: AnyRow) -> CudaReport:
        """The same with one row in the place of another, among its like."""
        if isinstance(row, RouteRow):
            return replace(self, routes=(*self.routes[:place], row, *self.routes[place + 1 :]))
        if isinstance(row, FeatureRow):
            return replace(self, features=(*self.features[:place], row, *self.features[place + 1 :]))
        return replace(self, rows=(*self.rows[:place], row, *self.rows[place + 1 :]))
