"""What ``sola-profile kernels --device cuda`` finds, as data. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

from sola_profile.kernel_targets import ModelTarget, RouteCase, Target

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


@dataclass(frozen=True)
class CudaReport:
    """``copy_bytes_per_s``: read and written, together. ``matmul_flops_per_s``: bfloat16, 2 per multiply-accumulate."""

    device: str
    torch: str
    cuda: str | None
    capability: str
    copy_bytes_per_s: float | None
    matmul_flops_per_s: float | None
    rows: tuple[Row, ...]
    routes: tuple[RouteRow, ...] = ()

    def with_row(self, place: int, row: Row | RouteRow) -> CudaReport:
        """The same with one row in the place of another, among its like."""
        if isinstance(row, RouteRow):
            return replace(self, routes=(*self.routes[:place], row, *self.routes[place + 1 :]))
        return replace(self, rows=(*self.rows[:place], row, *self.rows[place + 1 :]))
