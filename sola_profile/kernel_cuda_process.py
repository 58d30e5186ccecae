"""Measures every target of the CUDA kernels in a process of its own, and outlives it.

A kernel that faults leaves a process in which no other runs, and one that never ends can't be interrupted. Then another
process goes on with the next row. A report comes after every row, so that what is finished is never lost.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from sola_profile.errors import first_line
from sola_profile.kernel_cuda import (
    ROUTE_BACKENDS,
    SLOW_TO_START,
    Clock,
    follow,
    measure_ceilings,
    measure_model,
    measure_route,
    measure_slow,
    measure_target,
    unmeasured,
)
from sola_profile.kernel_cuda_result import CudaReport, RouteRow, Row, Timing
from sola_profile.kernel_targets import AUTO, ModelTarget, RouteCase, Target
from sola_profile.peers.table import OURS

# the longest that a process may be silent: for a row, and for its start with the ceilings
MOST_S, START_S = 60.0, 90.0
DEVICE_LOST = 3


@dataclass(frozen=True)
class Task:
    """A row to measure, of ``CudaReport.rows``; ``slow``: its routes that are slow to start.

    ``backends``: a row of ``CudaReport.routes``.
    """

    place: int
    slow: bool = False
    backends: bool = False

    def row(self, report: CudaReport) -> Row | RouteRow:
        """What is known of it."""
        return report.routes[self.place] if self.backends else report.rows[self.place]


def tasks_of(report: CudaReport) -> list[Task]:
    """Targets of one kernel, backends of softmax attention, what runs by the list that these imply, slow routes.

    Slow routes come last because they take long, those that a target is against first. Where softmax attention runs by
    the list they would be those of the same case by our own kernel once more.
    """
    cases = {place: row.target for place, row in enumerate(report.rows) if isinstance(row.target, Target)}
    own = [place for place, target in cases.items() if target.backend != AUTO]
    slow = sorted(own, key=lambda place: cases[place].against not in SLOW_TO_START)
    return [
        *map(Task, own),
        *(Task(place, backends=True) for place in range(len(report.routes))),
        *(Task(place) for place in range(len(report.rows)) if place not in own),
        *(Task(place, slow=True) for place in slow),
    ]


def measure(
    targets: tuple[Target, ...], models: tuple[ModelTarget, ...], cases: tuple[RouteCase, ...] = ()
) -> Iterator[CudaReport]:
    """A report with all rows after every one of them; raises ``RuntimeError`` where not even the device can be measured."""
    report, ready = unmeasured("", targets, models, cases), False
    left = tasks_of(report)
    while left:
        why = ""
        for message in _process(report, left):
            if isinstance(message, CudaReport):
                report, ready = message, True
            elif isinstance(message, str):
                why = message
                continue
            else:
                report = report.with_row(left.pop(0).place, message)
            yield report
        if not ready:
            raise RuntimeError(f"the device could not be measured: {why}")
        if why and left:
            task = left.pop(0)
            report = report.with_row(task.place, _failed(task.row(report), task, why))
            yield report


def _failed(row: Row | RouteRow, task: Task, why: str) -> Row | RouteRow:
    """What was known stays."""
    names = ROUTE_BACKENDS if task.backends else ("slow routes" if task.slow else OURS,)
    return replace(row, timings=(*row.timings, *(Timing(name, missing=why) for name in names)))


def _process(report: CudaReport, tasks: Sequence[Task]) -> Iterator[CudaReport | Row | RouteRow | str]:
    """What one process sends, and last why it ended before its time, where the next row is to blame."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work_through, args=(sender, report, tasks), daemon=True)
    process.start()
    # only the process holds its end now, so that its death ends the pipe
    sender.close()
    limit_s, why = START_S, ""
    try:
        while receiver.poll(limit_s):
            yield receiver.recv()
            limit_s = MOST_S
        why = f"not done after {limit_s:.0f} s"
    except EOFError:
        process.join()
        if process.exitcode not in (0, DEVICE_LOST):
            why = f"the process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        receiver.close()
    if why:
        yield why


def work_through(sender: Connection, report: CudaReport, tasks: Sequence[Task]) -> None:
    """What the process does: rows one by one, until the device is lost."""
    import torch

    clock = Clock()
    if report.copy_bytes_per_s is None:
        report = replace(measure_ceilings(clock), rows=report.rows, routes=report.routes)
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
            print(f"the device is lost: {first_line(error)}", flush=True)
            sys.exit(DEVICE_LOST)


def _measure(report: CudaReport, task: Task, clock: Clock) -> Row | RouteRow:
    row = task.row(report)
    try:
        if isinstance(row, RouteRow):
            return measure_route(row.case, clock)
        if task.slow:
            return measure_slow(row, clock, report.copy_bytes_per_s or 1.0)
        follow(report)
        if isinstance(row.target, ModelTarget):
            return measure_model(row.target, clock)
        return measure_target(row.target, clock, report.copy_bytes_per_s or 1.0)
    except Exception as error:  # one row's inputs may not fit where another's do
        return _failed(row, task, first_line(error))
