"""What ``sola-profile predict`` found: predicted times of some models on one machine, and measured ones where asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

from sola_profile.case import Resolution
from sola_profile.compare.bounds import Turn
from sola_profile.compare.deviations import Deviations, factor
from sola_profile.cost.recording import Call
from sola_profile.cost.roofline import ModelTime
from sola_profile.cost.work import PRODUCT_KINDS
from sola_profile.hardware import Machine
from sola_profile.measure.latency import Latency
from sola_profile.measure.statistics import Interval

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
    """One model. ``failed``: size → why the model refuses it. ``turns``: what bounds each kind as images grow.

    ``factor``: f of the interval [t / f, t · f] around a predicted time t (``compare.deviations``), None where nothing
    is known.
    """

    name: str
    parameters: int
    rows: tuple[TimeRow, ...]
    failed: Mapping[str, str]
    turns: tuple[Turn, ...] = ()
    factor: float | None = None

    def interval_s(self, row: TimeRow) -> Interval | None:
        """The interval around a size's predicted time, in seconds, which holds ``SHARE`` of the times."""
        time_s = row.predicted.total.middle
        return None if self.factor is None else Interval(time_s / self.factor, time_s * self.factor)


@dataclass(frozen=True)
class TimeResult:
    """Everything that one run found. ``load_1min``: runnable threads before it began, all users.

    ``known``: the runs that intervals stand on.
    """

    command: str
    machine: Machine
    shape: str
    threads: int
    load_1min: float
    models: tuple[ModelTimes, ...]
    known: tuple[Deviations, ...] = ()
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


def deviations_of(result: TimeResult) -> Deviations:
    """What one run found of how far predictions are off."""
    machine = result.machine
    # nothing is to be learned where no time could be predicted
    ratios = {
        model.name: tuple(1 / (1 + row.error) for row in model.rows if row.error is not None and row.error > -1)
        for model in result.models
    }
    found = {name: values for name, values in ratios.items() if values}
    return Deviations(machine.name, machine.measured_at, machine.dtype, result.threads, found)


def with_intervals(result: TimeResult, known: tuple[Deviations, ...]) -> TimeResult:
    """The same with intervals around all predicted times."""
    models = tuple(replace(model, factor=factor(known, model.name)) for model in result.models)
    return replace(result, models=models, known=known)


def kind_of(call: Call) -> str:
    """The kind of a call's product, or that it has none."""
    return call.kind if call.kind in PRODUCT_KINDS else OTHERS
