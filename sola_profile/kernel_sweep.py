"""The conductor of ``sola-profile kernels``: ceilings → cases → crossovers → models → one ``KernelReport``.

Like ``sweep.py`` it is a generator that reports after every finished piece, and what is finished stays in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from sola_profile.kernel_case import Choice
from sola_profile.kernel_measuring import KernelMeasuring, Sampling
from sola_profile.kernel_result import Backend, Crossover, KernelReport, KernelRow, ModelRow
from sola_profile.machine import environment
from sola_profile.measure.ceilings import Ceilings, measure_ceilings
from sola_profile.measuring import Progress
from sola_vision.ops._extension import extension

TIMING = "timing"


@dataclass(frozen=True)
class KernelPlan:
    """What to run. ``ceiling_s``: time for each measured ceiling."""

    choice: Choice
    sampling: Sampling
    budget_s: float
    ceiling_s: float
    command: str = ""


class Budget:
    """Time for measuring, dealt out to what is left to do; what ``torch.compile`` takes comes on top."""

    def __init__(self, budget_s: float, measuring: KernelMeasuring) -> None:
        self._measuring = measuring
        self._end = time.monotonic() + budget_s

    def share(self, left: int) -> float:
        """The share of the next of ``left`` pieces."""
        remaining_s = self._end + self._measuring.compiling_s - time.monotonic()
        return max(0.0, remaining_s) / left


class KernelSweep:
    """One run of ``sola-profile kernels``: go through ``run()`` as far as it gets, then ask for the ``report()``."""

    def __init__(self, plan: KernelPlan) -> None:
        self.plan = plan
        self.interrupted = False
        self._measuring = KernelMeasuring(plan.sampling)
        self._ceilings: dict[int, Ceilings] = {}
        self._rows: list[KernelRow] = []
        self._crossovers: list[Crossover] = []
        self._models: list[ModelRow] = []
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._environment = environment()

    def run(self) -> Iterator[Progress]:
        """Measure everything; yields before every piece of work."""
        choice = self.plan.choice
        for number, threads in enumerate(choice.threads):
            yield Progress("ceilings", number, len(choice.threads), f"of {threads} threads")
            self._ceilings[threads] = measure_ceilings(threads, choice.dtypes, self.plan.ceiling_s)
        cases = choice.cases()
        budget = Budget(self.plan.budget_s, self._measuring)
        for number, case in enumerate(cases):
            yield Progress(TIMING, number, len(cases), str(case))
            self._rows.append(self._measuring.measure(case, budget.share(len(cases) - number)))

    @property
    def measured(self) -> bool:
        """Whether there is something to lose."""
        return bool(self._rows)

    def report(self) -> KernelReport:
        """Everything that is finished by now."""
        return KernelReport(
            command=self.plan.command,
            started=self._started,
            environment=self._environment,
            backends=tuple(Backend(*entry) for entry in extension.backends()),
            ceilings=self._ceilings,
            budget_s=self.plan.budget_s,
            rows=tuple(self._rows),
            crossovers=tuple(self._crossovers),
            models=tuple(self._models),
            interrupted=self.interrupted,
        )
