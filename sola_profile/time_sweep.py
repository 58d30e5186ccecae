"""The conductor of ``sola-profile predict``: models → operator calls → predicted times → measured times → one result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import psutil
import torch

from sola_profile.case import Resolution
from sola_profile.compare.bounds import turns
from sola_profile.cost.recording import Recording, record_at
from sola_profile.cost.roofline import ModelTime, predict_times
from sola_profile.cost.symbolic import peak_of
from sola_profile.deviation_store import known_of
from sola_profile.errors import first_line
from sola_profile.hardware import Machine
from sola_profile.machine import available_bytes
from sola_profile.measure.contest import Contestant, prepare, race
from sola_profile.measure.latency import timer_for
from sola_profile.measure.module_times import time_modules
from sola_profile.source import InputShape, ModelSource
from sola_profile.time_result import ModelTimes, TimeResult, TimeRow, deviations_of, kind_of, with_intervals
from sola_profile.workload import Step, cpu_threads, inference_step

# sides at which the bound of every kind is looked at, beside those that were asked for
BOUND_SIDES = (64, 128, 256, 512, 1024, 2048)
# runs that a measured size must have room for: a first one, two by module, one to warm up, a sample
FEWEST_RUNS = 5
MODULE_RUNS = 2
ROUNDS = 10
WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class TimePlan:
    """What to predict. ``budget_s``: time to measure each model, 0 to measure none. ``depth``: of measured modules.

    ``shape``: of what the models take, each its own when None; ``batch``: images, as the shape says when None.
    ``bounds``: look at what bounds each kind as images grow. ``judged``: this run judges predictions, and its
    intervals stand on itself.
    """

    sources: Sequence[ModelSource]
    resolutions: Sequence[Resolution]
    machine: Machine
    shape: InputShape | None = None
    batch: int | None = None
    budget_s: float = 0.0
    depth: int = 2
    bounds: bool = True
    judged: bool = False
    command: str = ""

    def shape_of(self, source: ModelSource) -> InputShape:
        """What a model takes."""
        shape = self.shape or source.default_input
        return shape if self.batch is None else shape.with_batch(self.batch)


@dataclass
class _Entry:
    recording: Recording
    predicted: ModelTime
    sized: bool


class TimeSweep:
    """One run: go through ``run()`` as far as it gets, then ask for the ``result()``."""

    def __init__(self, plan: TimePlan) -> None:
        self._plan = plan
        self._models: list[ModelTimes] = []
        self._known = () if plan.judged else known_of(plan.machine)
        self._load = round(psutil.getloadavg()[0], 2)
        self._interrupted = False

    def run(self) -> Iterator[str]:
        """Predict model by model and measure where asked; yields what is done next."""
        for source in self._plan.sources:
            entries: dict[Resolution, _Entry] = {}
            self._models.append(ModelTimes(source.name, 0, (), {}))
            for resolution in self._plan.resolutions:
                yield f"predicting {source.name} at {resolution}"
                self._predict(source, resolution, entries)
            if self._plan.bounds:
                yield f"looking at what bounds {source.name} as images grow"
                self._look_at_bounds(source, entries)
            if self._plan.budget_s:
                yield f"measuring {source.name}"
                self._measure(source, entries)

    def interrupt(self) -> None:
        """Say in the result that it isn't all."""
        self._interrupted = True

    def result(self) -> TimeResult:
        """Everything that is finished by now."""
        plan = self._plan
        threads = plan.machine.threads or torch.get_num_threads()
        shape = ", ".join(dict.fromkeys(str(plan.shape_of(source)) for source in plan.sources))
        result = TimeResult(
            *(plan.command, plan.machine, shape, threads, self._load, tuple(self._models)),
            depth=plan.depth,
            interrupted=self._interrupted,
        )
        return with_intervals(result, (deviations_of(result),) if plan.judged else self._known)

    def _predict(self, source: ModelSource, resolution: Resolution, entries: dict[Resolution, _Entry]) -> None:
        model = self._models[-1]
        try:
            entry = self._entry(source, resolution)
        except Exception as error:
            self._models[-1] = replace(model, failed={**model.failed, str(resolution): first_line(error)})
            return
        entries[resolution] = entry
        row = TimeRow(resolution, entry.predicted)
        self._models[-1] = replace(model, parameters=entry.recording.parameters, rows=(*model.rows, row))

    def _entry(self, source: ModelSource, resolution: Resolution) -> _Entry:
        """A model that takes any size as it is, else built for this one."""
        machine, shape = self._plan.machine, self._plan.shape_of(source)
        record = partial(record_at, source, shape, machine.dtype, resolution, device_type=machine.device_type)
        try:
            recording, sized = record(), False
        except Exception:
            recording, sized = record(sized=True), True
        return _Entry(recording, predict_times(recording, machine), sized)

    def _look_at_bounds(self, source: ModelSource, entries: dict[Resolution, _Entry]) -> None:
        times = {resolution: entry.predicted for resolution, entry in entries.items()}
        for side in BOUND_SIDES:
            resolution = Resolution(side, side)
            if resolution not in times:
                try:
                    times[resolution] = self._entry(source, resolution).predicted
                except Exception:
                    # a size that the model refuses has no bound
                    continue
        ordered = dict(sorted(times.items(), key=lambda item: item[0].pixels))
        self._models[-1] = replace(self._models[-1], turns=tuple(turns(ordered, kind_of)))

    def _measure(self, source: ModelSource, entries: dict[Resolution, _Entry]) -> None:
        """All sizes of one model take turns; what can't be measured says why."""
        plan, timer = self._plan, timer_for(torch.device("cpu"))
        contestants: dict[str, Contestant] = {}
        missing: dict[str, str] = {}
        modules: dict[str, dict[str, float]] = {}
        end_s = time.monotonic() + plan.budget_s
        with cpu_threads(plan.machine.threads or None):
            for resolution, entry in entries.items():
                key = str(resolution)
                missing[key] = self._refusal(entry, end_s - time.monotonic())
                if missing[key]:
                    continue
                try:
                    model, step = self._step(source, resolution, entry)
                    contestants[key] = prepare(step, timer, WARMUP_SHARE * plan.budget_s / len(entries))
                    modules[key] = time_modules(model, step, plan.depth, MODULE_RUNS)
                except (MemoryError, RuntimeError) as error:
                    missing[key] = first_line(error)

            def on_failure(key: str, error: BaseException) -> bool:
                if not isinstance(error, (MemoryError, RuntimeError)):
                    return False
                missing[key] = first_line(error)
                return True

            try:
                race(contestants, timer, ROUNDS, end_s - time.monotonic(), on_failure)
            finally:
                self._keep(contestants, modules, missing)

    def _keep(
        self, contestants: dict[str, Contestant], modules: dict[str, dict[str, float]], missing: dict[str, str]
    ) -> None:
        rows = []
        for row in self._models[-1].rows:
            key = str(row.resolution)
            latency = contestants[key].latency() if key in contestants else None
            why = "" if latency is not None else missing.get(key) or "not reached"
            rows.append(replace(row, latency=latency, module_times=modules.get(key), missing=why))
        self._models[-1] = replace(self._models[-1], rows=tuple(rows))

    def _step(self, source: ModelSource, resolution: Resolution, entry: _Entry) -> tuple[torch.nn.Module, Step]:
        plan, dtype = self._plan, getattr(torch, self._plan.machine.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = source.build(resolution if entry.sized else None).to(dtype)
            image = torch.rand(plan.shape_of(source).at(resolution.height, resolution.width)).to(dtype)
        return model, inference_step(model, image)

    @staticmethod
    def _refusal(entry: _Entry, left_s: float) -> str:
        run_s = entry.predicted.total.middle
        if FEWEST_RUNS * run_s > left_s:
            return f"about {run_s:.3g} s a run, and {max(left_s, 0.0):.3g} s are left to measure this model"
        needed, free = peak_of(entry.recording).total_bytes, available_bytes(torch.device("cpu"))
        return f"needs {needed:,} bytes, {free:,} are free" if needed > free else ""
