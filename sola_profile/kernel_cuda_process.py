"""Measures every target of the CUDA kernels in a process of its own, and outlives it.

A kernel that faults leaves a process in which no other runs, and one that never ends can't be interrupted. Then another
process goes on with the next target. A report comes after every target, so that what is finished is never lost.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from sola_profile.errors import first_line
from sola_profile.kernel_cuda import (
    SLOW_TO_START,
    Clock,
    CudaReport,
    Row,
    Timing,
    measure_ceilings,
    measure_model,
    measure_slow,
    measure_target,
    unmeasured,
)
from sola_profile.kernel_targets import ModelTarget, Target
from sola_profile.peers.table import OURS

# the longest that a process may be silent: for a row, and for its start with the ceilings
MOST_S, START_S = 60.0, 90.0
DEVICE_LOST = 3


@dataclass(frozen=True)
class Task:
    """A row to measure; ``slow``: its routes that are slow to start, once all rows have the others."""

    place: int
    slow: bool


def tasks_of(rows: Sequence[Row]) -> list[Task]:
    """In the order of the targets, and then those against a slow route before those that only show one."""
    cases = {place: row.target for place, row in enumerate(rows) if isinstance(row.target, Target)}
    slow = sorted(cases, key=lambda place: cases[place].against not in SLOW_TO_START)
    return [Task(place, slow=False) for place in range(len(rows))] + [Task(place, slow=True) for place in slow]


def measure(targets: tuple[Target, ...], models: tuple[ModelTarget, ...]) -> Iterator[CudaReport]:
    """A report with all rows after every one of them; raises ``RuntimeError`` where not even the device can be measured."""
    report, ready = unmeasured("", targets, models), False
    left = tasks_of(report.rows)
    while left:
        why = ""
        for message in _process(report if ready else None, report.rows, left):
            if isinstance(message, CudaReport):
                report, ready = replace(message, rows=report.rows), True
            elif isinstance(message, str):
                why = message
                continue
            else:
                report = report.with_row(left.pop(0).place, message)
            yield report
        if not ready:
            raise RuntimeError(f"the device could not be measured: {why}")
        if why and left:
            report = report.with_row(left[0].place, _failed(report.rows[left[0].place], left.pop(0), why))
            yield report


def _failed(row: Row, task: Task, why: str) -> Row:
    """What was known stays."""
    name = "slow routes" if task.slow else OURS
    return replace(row, timings=(*row.timings, Timing(name, missing=why)))


def _process(
    ceilings: CudaReport | None, rows: Sequence[Row], tasks: Sequence[Task]
) -> Iterator[CudaReport | Row | str]:
    """What one process sends, and last why it ended before its time, where the next row is to blame."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work_through, args=(sender, ceilings, rows, tasks), daemon=True)
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


def work_through(sender: Connection, ceilings: CudaReport | None, rows: Sequence[Row], tasks: Sequence[Task]) -> None:
    """What the process does: rows one by one, until the device is lost."""
    import torch

    clock = Clock()
    ceilings = measure_ceilings(clock) if ceilings is None else ceilings
    # that it is ready
    sender.send(ceilings)
    current = list(rows)
    for task in tasks:
        current[task.place] = _measure(current[task.place], task, clock, ceilings.copy_bytes_per_s or 1.0)
        sender.send(current[task.place])
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            print(f"the device is lost: {first_line(error)}", flush=True)
            sys.exit(DEVICE_LOST)


def _measure(row: Row, task: Task, clock: Clock, copy_bytes_per_s: float) -> Row:
    try:
        if task.slow:
            return measure_slow(row, clock, copy_bytes_per_s)
        if isinstance(row.target, ModelTarget):
            return measure_model(row.target, clock)
        return measure_target(row.target, clock, copy_bytes_per_s)
    except Exception as error:  # one row's inputs may not fit where another's do
        return _failed(row, task, first_line(error))
