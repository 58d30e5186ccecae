"""What ``sola-profile predict`` found: predicted times of some models on one machine, and measured ones where asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from sola_profile.case import Resolution
from sola_profile.compare.bounds import Turn
from sola_profile.cost.recording import Call
from sola_profile.cost.roofline import ModelTime
from sola_profile.cost.work import PRODUCT_KINDS
from sola_profile.hardware import Machine
from sola_profile.measure.latency import Latency

OTHERS = "no products"


@dataclass(frozen=True)
class TimeRow:
    """One size. ``latency``: measured, None where it wasn't asked for or could not be had, which ``missing`` explains.

    ``module_times``: measured seconds of every module down to the result's depth; empty where not measured.
    """

    resolution: Resolution
    predicted: ModelTime
    latency: Latency | None = None
    module_times: Mapping[str, float] | None = None
    missing: str = ""

    @property
    def error(self) -> float | None:
        """Predicted over measured time, minus 1."""
        return None if self.latency is None else self.predicted.total.middle / self.latency.median_s - 1


@dataclass(frozen=True)
class ModelTimes:
    """One model. ``failed``: size → why the model refuses it. ``turns``: what bounds each kind as images grow."""

    name: str
    parameters: int
    rows: tuple[TimeRow, ...]
    failed: Mapping[str, str]
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class TimeResult:
    """Everything that one run found. ``load_1min``: runnable threads before it began, all users."""

    command: str
    machine: Machine
    shape: str
    threads: int
    load_1min: float
    models: tuple[ModelTimes, ...]
    depth: int = 2
    interrupted: bool = False

    @property
    def errors(self) -> tuple[float, ...]:
        """Of all measured rows."""
        return tuple(row.error for model in self.models for row in model.rows if row.error is not None)

    @property
    def median_absolute_error(self) -> float | None:
        """Over all measured rows; None without one."""
        return median(map(abs, self.errors)) if self.errors else None


def kind_of(call: Call) -> str:
    """The kind of a call's product, or that it has none."""
    return call.kind if call.kind in PRODUCT_KINDS else OTHERS
