"""The conductor of ``sola-profile kernels``: ceilings → cases → crossovers → models → one ``KernelReport``.

Like ``sweep.py`` it is a generator that reports after every finished piece, and what is finished stays in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from sola_profile.case import Resolution
from sola_profile.kernel_case import Choice
from sola_profile.kernel_crossover import find_crossover, searches
from sola_profile.kernel_measuring import KernelMeasuring, Sampling
from sola_profile.kernel_models import ModelComparison, model_cases
from sola_profile.kernel_result import Backend, Crossover, KernelReport, KernelRow, ModelRow
from sola_profile.machine import environment
from sola_profile.measure.ceilings import Ceilings, measure_ceilings
from sola_profile.measuring import Progress
from sola_vision.ops._extension import extension
from sola_vision.spec import BackboneSpec

TIMING = "timing"
# what a crossover and a model take of the budget, in cases
CROSSOVER_WEIGHT = 1.0
MODEL_WEIGHT = 4.0


@dataclass(frozen=True)
class KernelPlan:
    """What to run. ``ceiling_s``: time for each measured ceiling. ``crossover``: look for crossovers as well.

    ``models``, ``resolutions``: to compare as a whole, in every dtype with the most threads of the choice.
    """

    choice: Choice
    sampling: Sampling
    budget_s: float
    ceiling_s: float
    crossover: bool = False
    models: tuple[BackboneSpec, ...] = ()
    resolutions: tuple[Resolution, ...] = ()
    command: str = ""


class Budget:
    """Time for measuring, dealt out to what is left to do; what ``torch.compile`` takes comes on top."""

    def __init__(self, budget_s: float, measuring: KernelMeasuring) -> None:
        self._measuring = measuring
        self._end = time.monotonic() + budget_s

    def share(self, left: float, weight: float = 1.0) -> float:
        """The share of the next piece, where all pieces that are ``left`` weigh so much together."""
        remaining_s = self._end + self._measuring.compiling_s - time.monotonic()
        return max(0.0, remaining_s) * weight / left


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
            yield Progress(
                "ceilings", number, len(choice.threads), f"with {threads} thread{'s' if threads > 1 else ''}"
            )
            self._ceilings[threads] = measure_ceilings(threads, choice.dtypes, self.plan.ceiling_s)
        yield from self._measure()

    def _measure(self) -> Iterator[Progress]:
        plan, choice = self.plan, self.plan.choice
        rounds = plan.sampling.rounds
        cases = choice.cases()
        wanted = list(searches(choice)) if plan.crossover else []
        models = list(model_cases(plan.models, plan.resolutions, choice.dtypes, max(choice.threads)))
        weights = [1.0] * len(cases) + [CROSSOVER_WEIGHT] * len(wanted) + [MODEL_WEIGHT] * len(models)
        budget = Budget(plan.budget_s, self._measuring)

        def share(number: int) -> float:
            return budget.share(sum(weights[number:]), weights[number])

        for number, case in enumerate(cases):
            yield Progress(TIMING, number, len(weights), str(case))
            self._rows.append(self._measuring.measure(case, share(number)))
        for number, search in enumerate(wanted, len(cases)):
            yield Progress(TIMING, number, len(weights), f"crossover {search}")
            self._crossovers.append(find_crossover(search, rounds, share(number)))
        comparison = ModelComparison(rounds)
        for number, model in enumerate(models, len(cases) + len(wanted)):
            yield Progress(TIMING, number, len(weights), str(model))
            self._models.append(comparison.compare(model, share(number)))

    @property
    def measuring(self) -> bool:
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
