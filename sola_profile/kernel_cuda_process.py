"""Measures every target of the CUDA kernels in a process of its own, and outlives it.

A kernel that faults leaves a process in which no other runs, and one that never ends can't be interrupted. Then another
process goes on with the next row. A report comes after every row, so that what is finished is never lost.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Literal

from sola_profile.errors import first_line
from sola_profile.kernel_cuda import (
    ROUTE_BACKENDS,
    SLOW_TO_START,
    Clock,
    follow,
    measure_ceilings,
    measure_feature,
    measure_model,
    measure_route,
    measure_slow,
    measure_target,
    unmeasured,
)
from sola_profile.kernel_cuda_result import WITH, WITHOUT, AnyRow, CudaReport, FeatureRow, RouteRow, Timing
from sola_profile.kernel_targets import AUTO, FeatureCase, ModelTarget, RouteCase, Target
from sola_profile.peers.table import OURS

# the longest that a process may be silent: for a row, for its slow routes, and for its start with the ceilings
MOST_S, MOST_SLOW_S, START_S = 30.0, 60.0, 90.0
# after the beginning of everything no slow route starts any more: who lends a device gives the whole three minutes
SLOW_S = 150.0
# of rows with the same kernels, before the others are left out; one that hangs counts for two
MOST_LOST = 2


@dataclass(frozen=True)
class Task:
    """A row to measure, by its place among the targets, features or routes of a report.

    ``slow``: those of a target's routes that are slow to start.
    """

    place: int
    slow: bool = False
    part: Literal["rows", "features", "routes"] = "rows"

    def row(self, report: CudaReport) -> AnyRow:
        """What is known of it."""
        found: AnyRow = getattr(report, self.part)[self.place]
        return found


def tasks_of(report: CudaReport) -> list[Task]:
    """Targets of one kernel, features, backends of softmax attention, what runs by the list that these imply, slow routes.

    Slow routes come last because they take long, those that a target is against first. Where softmax attention runs by
    the list they would be those of the same case by our own kernel once more.
    """
    cases = {place: row.target for place, row in enumerate(report.rows) if isinstance(row.target, Target)}
    own = [place for place, target in cases.items() if target.backend != AUTO]
    slow = sorted(own, key=lambda place: cases[place].against not in SLOW_TO_START)
    return [
        *map(Task, own),
        *(Task(place, part="features") for place in range(len(report.features))),
        *(Task(place, part="routes") for place in range(len(report.routes))),
        *(Task(place) for place in range(len(report.rows)) if place not in own),
        *(Task(place, slow=True) for place in slow),
    ]


@dataclass(frozen=True)
class End:
    """Why a process ended before its time, through the row that it owed or, ``sent``, the last that it had sent."""

    why: str
    sent: bool = False
    hung: bool = False


Message = CudaReport | AnyRow | End


def measure(
    targets: tuple[Target, ...],
    models: tuple[ModelTarget, ...],
    cases: tuple[RouteCase, ...] = (),
    features: tuple[FeatureCase, ...] = (),
) -> Iterator[CudaReport]:
    """A report with all rows after every one of them; raises ``RuntimeError`` where not even the device can be measured."""
    report, ready, slow_until = unmeasured("", targets, models, cases, features), False, time.monotonic() + SLOW_S
    left = tasks_of(report)
    lost: Counter[Kind] = Counter()
    while left:
        task = left[0]
        for message in _process(report, left, slow_until):
            if isinstance(message, CudaReport):
                report, ready = message, True
            elif not isinstance(message, End):
                task = left.pop(0)
                report = report.with_row(task.place, message)
            elif not ready:
                raise RuntimeError(f"the device could not be measured: {message.why}")
            else:
                if not message.sent:
                    task = left.pop(0)
                    report = _without(report, task, message.why)
                lost[kinds_of(task, report)[-1]] += MOST_LOST if message.hung else 1
                report, left = _leave_out(report, left, lost)
            yield report
            if not left:
                break


# operator, dtype, and what else tells a row's kernels from those of others
Kind = tuple[str, ...]


def kinds_of(task: Task, report: CudaReport) -> list[Kind]:
    """The kernels that a row needs, at last those of its own; backends and features have ours among them."""
    row = task.row(report)
    if isinstance(row, RouteRow | FeatureRow):
        case = row.case.kernel
        own = row.case.feature if isinstance(row, FeatureRow) else "backends"
        return [(case.op, case.dtype), (case.op, case.dtype, own)]
    if isinstance(row.target, ModelTarget):
        return [("model", row.target.model)]
    return [(row.target.case.op, row.target.case.dtype)]


def _leave_out(report: CudaReport, left: Sequence[Task], lost: Counter[Kind]) -> tuple[CudaReport, list[Task]]:
    """The rows whose kernels have cost too many processes: every one takes seconds, or what is silent may take."""
    kept = []
    for task in left:
        kind = next((kind for kind in kinds_of(task, report) if lost[kind] >= MOST_LOST), None)
        if kind is None:
            kept.append(task)
        else:
            report = _without(report, task, f"left out, since {' '.join(kind)} has cost processes before")
    return report, kept


def _without(report: CudaReport, task: Task, why: str) -> CudaReport:
    return report.with_row(task.place, _failed(task.row(report), task, why))


def _failed(row: AnyRow, task: Task, why: str) -> AnyRow:
    """What was known stays."""
    names = {"features": (WITH, WITHOUT), "routes": ROUTE_BACKENDS}.get(task.part) or (
        "slow routes" if task.slow else OURS,
    )
    return replace(row, timings=(*row.timings, *(Timing(name, missing=why) for name in names)))


def _process(report: CudaReport, tasks: Sequence[Task], slow_until: float) -> Iterator[Message]:
    """What one process sends, and last why it ended before its time."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work_through, args=(sender, report, tasks, slow_until), daemon=True)
    process.start()
    # only the process holds its end now, so that its death ends the pipe
    sender.close()
    limit_s, limits = START_S, iter([MOST_SLOW_S if task.slow else MOST_S for task in tasks])
    try:
        while receiver.poll(limit_s):
            message: Message = receiver.recv()
            yield message
            # how it ends after that says nothing
            if isinstance(message, End):
                return
            limit_s = next(limits, MOST_S)
        yield End(f"not done after {limit_s:.0f} s", hung=True)
    except EOFError:
        process.join()
        yield End(f"the process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        receiver.close()


def work_through(sender: Connection, report: CudaReport, tasks: Sequence[Task], slow_until: float) -> None:
    """What the process does: rows one by one, until the device is lost."""
    import torch

    clock = Clock(slow_until)
    if report.copy_bytes_per_s is None:
        report = replace(measure_ceilings(clock), rows=report.rows, routes=report.routes, features=report.features)
    # that it is ready
    sender.send(report)
    for task in tasks:
        row = _measure(report, task, clock)
        report = report.with_row(task.place, row)
        sender.send(row)
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            sender.send(End(f"the device is lost: {first_line(error)}", sent=True))
            return


def _measure(report: CudaReport, task: Task, clock: Clock) -> AnyRow:
    row = task.row(report)
    try:
        if isinstance(row, RouteRow):
            return measure_route(row.case, clock)
        if isinstance(row, FeatureRow):
            return measure_feature(row.case, clock)
        if task.slow:
            return measure_slow(row, clock, report.copy_bytes_per_s or 1.0)
        follow(report)
        if isinstance(row.target, ModelTarget):
            return measure_model(row.target, clock)
        return measure_target(row.target, clock, report.copy_bytes_per_s or 1.0)
    except Exception as error:  # one row's inputs may not fit where another's do
        return _failed(row, task, first_line(error))
