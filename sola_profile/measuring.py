"""Measures the rows of a sweep within a time budget: peak memory and warm-up case by case, then latency interleaved.

Cases come in order of priority. One that would not fit in memory or in what is left of the budget is passed over and
says so; one that runs out of memory is a result too, and the rest goes on.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from sola_profile.case import Case, Resolution, Settings
from sola_profile.errors import first_line
from sola_profile.machine import available_bytes
from sola_profile.measure.allocator import settle_allocator
from sola_profile.measure.kind_times import KindTimes, time_kinds
from sola_profile.measure.latency import (
    FEWEST_SAMPLES,
    Sample,
    Timer,
    WarmUp,
    interleave,
    summarize,
    timer_for,
    warm_up,
)
from sola_profile.measure.peak_memory import measure_peak_bytes
from sola_profile.result import LeftOut, Missing, NotReached, OutOfMemory, OverBudget, Row
from sola_profile.source import ModelSource
from sola_profile.workload import Step, Workload, build

# share of the budget that all warm-ups together may take, and all runs that split the time into kinds of layers
WARMUP_SHARE = 0.2
KINDS_SHARE = 0.1
# a first run, one for memory, a warm-up and three samples; the model itself, for which all this is done, is tried when
# a first run, one for memory and a sample fit
FEWEST_RUNS = 6
FEWEST_RUNS_OF_MODEL = 3


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of a phase are finished; ``what`` was the last of them."""

    phase: str
    done: float
    total: float
    what: str


@dataclass
class _Measured:
    """What is known of one case so far."""

    peak_bytes: int | None = None
    warm: WarmUp | None = None
    kind_times: KindTimes | None = None
    samples: list[Sample[Case]] = field(default_factory=list)
    missing: Missing | None = None

    @property
    def run_s(self) -> float | None:
        """What one run takes: the fastest so far, since the first ones are slow."""
        if self.warm is None:
            return None
        return min([*self.warm.times_s, *(sample.time_s for sample in self.samples)])


class Measuring:
    """Fills rows with measurements; ``row()`` gives one with what is known by now, at any time.

    ``rows``: analysed rows in order of priority, the sizes of one model together and from few tokens to many. The
    first is the one that was asked for; the others are measured where time is left, and their time is not split into kinds.
    """

    def __init__(self, rows: Sequence[Row], settings: Settings, budget_s: float) -> None:
        self._rows = {row.case: row for row in rows}
        self._model = rows[0].case.source
        self._settings = settings
        self._budget_s = budget_s
        self._device = torch.device(settings.device)
        self._timer: Timer = timer_for(self._device)
        self._deadline = 0.0
        self._measured = {row.case: _Measured() for row in rows}
        # the steps hold their models and images
        self._workloads: dict[tuple[ModelSource, Resolution | None], Workload] = {}
        self._steps: dict[Case, Step] = {}

    def run(self) -> Iterator[Progress]:
        """Measure everything that fits, yielding after every finished piece of work.

        What was passed over is looked at again while that lets more in: the first estimates come from single runs,
        and a moment's disturbance must not cost a row for which there is time after all.
        """
        settle_allocator()
        self._deadline = self._timer.now() + self._budget_s
        waiting = list(self._rows)
        while waiting:
            for number, case in enumerate(waiting):
                yield Progress("preparing", number, len(waiting), f"{case.source.name} at {case.resolution}")
                self._prepare(case)
            yield from self._race([case for case in waiting if case in self._steps])
            passed_over = [case for case in waiting if isinstance(self._measured[case].missing, OverBudget)]
            waiting = [case for case in passed_over if self._refusal(case) is None]

    def row(self, case: Case) -> Row:
        """The row with what was measured of it so far."""
        row, measured = self._rows[case], self._measured[case]
        memory = None
        if measured.peak_bytes is not None:
            memory = replace(row.predicted_memory, step_bytes=measured.peak_bytes, at="", gradient_bytes=0)
        latency = None
        if measured.samples and measured.warm is not None:
            latency = summarize(measured.samples, measured.warm)
        missing = None if latency is not None else measured.missing or NotReached()
        return replace(row, measured_memory=memory, latency=latency, kind_times=measured.kind_times, missing=missing)

    def _prepare(self, case: Case) -> None:
        """First run, peak memory, warm-up, time per kind of layer."""
        measured = self._measured[case]
        measured.missing = self._refusal(case)
        if measured.missing is not None:
            return
        try:
            workload = self._workload(case)
            step = workload.step(workload.image(case.resolution))
            if self._settings.compile:
                # every size compiles anew; that is neither a run nor the budget's concern
                self._deadline += self._timer.time(step)
            first_s = self._timer.time(step)
            measured.peak_bytes = measure_peak_bytes(step, self._device)
            fair_s = self._budget_s / len(self._rows)
            # a first run says little about the next, so two more follow unless they would take the whole share
            limit_s = max(WARMUP_SHARE * fair_s, 2 * first_s if 3 * first_s < fair_s else 0.0)
            measured.warm = warm_up(step, self._timer, limit_s, first_s)
            if self._splits_time(case, first_s):
                measured.kind_times = time_kinds(workload, case.resolution, KINDS_SHARE * fair_s)
        except Exception as error:
            if not self._record_out_of_memory(case, error):
                if case.spec is not None:
                    raise
                # what other people's models do is not in our hands, and no reason to lose the rest
                measured.missing = LeftOut(f"failed: {first_line(error)}")
        else:
            self._steps[case] = step

    def _workload(self, case: Case) -> Workload:
        """The built model, kept for the other sizes that it takes."""
        size = case.resolution if case.sized else None
        if (case.source, size) not in self._workloads:
            built = build(case.source, self._settings, shape=case.shape, resolution=size)
            self._workloads[case.source, size] = built
        return self._workloads[case.source, size]

    def _splits_time(self, case: Case, run_s: float) -> bool:
        """Whether to time the kinds of layers: of an eager pass of a backbone, if a sample still fits after it."""
        if case.spec is None:
            return False
        eager = self._settings.mode == "infer" and not self._settings.compile
        return case.source == self._model and eager and self._timer.now() + 2 * run_s <= self._deadline

    def _race(self, cases: Sequence[Case]) -> Iterator[Progress]:
        """Sample cases that are ready, in turn, to the end of the budget."""
        steps = {case: self._steps[case] for case in cases}
        warm = {case: self._measured[case].warm or WarmUp((), settled=False) for case in cases}
        start = self._timer.now()
        race = interleave(
            steps,
            warm,
            self._timer,
            self._deadline,
            self._record_out_of_memory,
            reserved_s=lambda case: 0.0 if case.source == self._model else self._owed_s(self._model),
        )
        for sample in race:
            self._measured[sample.key].samples.append(sample)
            done_s = self._timer.now() - start
            what = f"{sample.key.source.name} at {sample.key.resolution}"
            yield Progress("measuring", done_s, max(done_s, self._deadline - start), what)
        for case in cases:
            measured = self._measured[case]
            if not measured.samples and measured.missing is None and measured.run_s is not None:
                measured.missing = OverBudget(measured.run_s, self._budget_s)

    def _refusal(self, case: Case) -> Missing | None:
        """Why this case should not even be tried."""
        needed_bytes = self._rows[case].predicted_memory.total_bytes
        free_bytes = available_bytes(self._device)
        if needed_bytes > free_bytes:
            return OutOfMemory(needed_bytes, free_bytes)
        estimated_s = self._estimate_s(case)
        if estimated_s is None:
            return None
        left_s = self._deadline - self._timer.now()
        if case.source == self._model:
            # a large size may not take the time that smaller ones, which are ready, need for their samples
            fits = estimated_s * FEWEST_RUNS_OF_MODEL <= left_s - self._owed_s(self._model)
        else:
            fits = estimated_s * FEWEST_RUNS <= left_s - self._owed_s()
        return None if fits else OverBudget(estimated_s, self._budget_s)

    def _owed_s(self, source: ModelSource | None = None) -> float:
        """Time that the cases which are ready, all or those of one model, still need for their samples."""
        return sum(
            (measured.run_s or 0.0) * max(0, FEWEST_SAMPLES - len(measured.samples))
            for case, measured in self._measured.items()
            if case in self._steps and source in (None, case.source)
        )

    def _estimate_s(self, case: Case) -> float | None:
        """Time of one run, from the nearest measured case by its matrix products; None before the first, or where that has none."""
        macs = self._rows[case].cost.macs
        known = [
            (run_s, self._rows[other].cost.macs, other.source == case.source)
            for other in self._steps
            if (run_s := self._measured[other].run_s) is not None
        ]
        if not known:
            return None
        # another size of the same model says more than another model, and a large one more than a small one
        run_s, known_macs, _ = max(known, key=lambda entry: (entry[2], entry[1]))
        return run_s * macs / known_macs if known_macs else None

    def _record_out_of_memory(self, case: Case, error: BaseException) -> bool:
        """Whether the error says that memory ran out; the case is marked then."""
        if not is_out_of_memory(error):
            return False
        self._measured[case].missing = OutOfMemory(self._rows[case].predicted_memory.total_bytes)
        self._steps.pop(case, None)
        # the frames of the traceback hold the tensors that did fit
        error.__traceback__ = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python or PyTorch means that an allocation failed."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "cannot allocate memory")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
