"""``--isolate``: every size is measured in a new process of its own, so that none inherits another's memory or caches.

A process that is killed, as Linux does when memory runs out, costs its own size alone. The models of one size share a
process and take turns in it; sizes come one after the other, so that a drift of the machine may look like growth.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from sola_profile.case import Case, Settings
from sola_profile.measuring import FEWEST_RUNS_OF_MODEL, Measuring, Progress
from sola_profile.result import Killed, NotReached, OverBudget, Row
from sola_profile.workload import cpu_threads

# what a process has found so far is sent this often, and is what remains when it is killed
SEND_EVERY_S = 1.0


class IsolatedError(RuntimeError):
    """Something failed in a process; the message holds its traceback."""


class Isolated:
    """Like ``Measuring``: go through ``run()`` as far as it gets, and ask for any ``row()`` at any time.

    ``rows``: analysed rows, the model that was asked for first. ``budget_s``: for all sizes, shared among those to come.
    """

    def __init__(self, rows: Sequence[Row], settings: Settings, budget_s: float) -> None:
        self._settings, self._budget_s = settings, budget_s
        self._model = rows[0].case.source
        self._rows = {row.case: replace(row, missing=NotReached()) for row in rows}

    def row(self, case: Case) -> Row:
        """The row with what was measured of it so far."""
        return self._rows[case]

    def run(self) -> Iterator[Progress]:
        """Measure size after size, yielding what the processes tell."""
        sizes = list(dict.fromkeys(row.resolution for row in self._rows.values()))
        left_s = self._budget_s
        for number, size in enumerate(sizes):
            rows = [row for row in self._rows.values() if row.resolution == size]
            share_s = left_s / (len(sizes) - number)
            refusal = self._refusal(rows[0], left_s)
            if refusal is not None:
                self._keep([replace(row, missing=refusal) for row in rows])
                continue
            yield Progress("launching", number, len(sizes), f"a process for {size}")
            began: float | None = None
            for event in self._measure(rows, share_s):
                # what a process takes to load is not the budget's concern
                began = time.monotonic() if began is None else began
                yield event
            left_s = max(0.0, left_s - (0.0 if began is None else time.monotonic() - began))

    def _measure(self, rows: Sequence[Row], budget_s: float) -> Iterator[Progress]:
        """One process from its start to its end, whatever that is."""
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        bare = [replace(row, missing=None) for row in rows]
        process = context.Process(target=measure_rows, args=(sender, bare, self._settings, budget_s), daemon=True)
        process.start()
        # only the process holds its end now, so that its death ends the pipe
        sender.close()
        try:
            yield from self._listen(receiver)
            process.join()
        finally:
            # whoever stops listening, by Ctrl-C for one, has no use for it
            process.terminate()
            process.join()
            receiver.close()
        if process.exitcode:
            ended = Killed(process.exitcode)
            found = [self.row(row.case) for row in rows]
            self._keep([replace(row, missing=ended) for row in found if row.latency is None])

    def _listen(self, receiver: Connection) -> Iterator[Progress]:
        while True:
            try:
                message = receiver.recv()
            except EOFError:
                return
            if isinstance(message, Progress):
                yield message
            elif isinstance(message, str):
                raise IsolatedError(message)
            else:
                self._keep(message)

    def _keep(self, rows: Sequence[Row]) -> None:
        self._rows.update({row.case: row for row in rows})

    def _refusal(self, first: Row, left_s: float) -> OverBudget | None:
        """Whether not even the first model of a size fits in the time, by the sizes before it."""
        known = [
            (row.cost.macs, row.latency.median_s)
            for row in self._rows.values()
            if row.latency is not None and row.case.source == first.case.source
        ]
        if not known:
            return None
        macs, run_s = max(known)
        estimated_s = run_s * first.cost.macs / max(1, macs)
        fits = estimated_s * FEWEST_RUNS_OF_MODEL <= left_s
        return None if fits else OverBudget(estimated_s, self._budget_s)


def measure_rows(sender: Connection, rows: Sequence[Row], settings: Settings, budget_s: float) -> None:
    """What the process does: measure, and send progress, rows, and the traceback of a failure."""
    # Ctrl-C is for the process that was started by hand, which ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with cpu_threads(settings.threads):
            measuring = Measuring(rows, settings, budget_s)
            sent_at = time.monotonic()
            for event in measuring.run():
                if event.phase == "measuring" and time.monotonic() - sent_at < SEND_EVERY_S:
                    continue
                sender.send(event)
                _send_rows(sender, measuring, rows)
                sent_at = time.monotonic()
            _send_rows(sender, measuring, rows)
    except Exception:
        sender.send(traceback.format_exc())


def _send_rows(sender: Connection, measuring: Measuring, rows: Sequence[Row]) -> None:
    found: list[Any] = [measuring.row(row.case) for row in rows]
    sender.send(found)
