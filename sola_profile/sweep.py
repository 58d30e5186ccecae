"""The conductor: cases → cost and measurement → comparison → one ``Profile``.

A sweep is a generator that reports after every finished piece of work. What is finished stays in it, so that an
interruption or a failure later on loses nothing: ``profile()`` can be asked for at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from sola_profile.analysis import analyse, analyse_model, with_time
from sola_profile.case import Case, Resolution, Settings
from sola_profile.compare.scaling import helpful_sizes
from sola_profile.cost.closed_form import complexity
from sola_profile.cost.formula_cost import Growth, formula_complexity, growth
from sola_profile.cost.polynomial import Complexity
from sola_profile.cost.symbolic import LIMIT_S, ModelFormula, model_formula
from sola_profile.errors import first_line
from sola_profile.growing import crossovers, scaling
from sola_profile.hardware import FLOPS, TRAFFIC, Machine
from sola_profile.isolated import Isolated
from sola_profile.machine import environment
from sola_profile.measuring import Measuring, Progress
from sola_profile.result import MODEL, Contender, Profile, Roofs, Row
from sola_profile.source import InputShape, ModelSource
from sola_profile.workload import NoCheckpointsError, Workload, build, cpu_threads
from sola_vision.presets import twins


@dataclass(frozen=True)
class Plan:
    """What to sweep over. ``budget_s``: time for all measuring, None measures nothing.

    ``shape``: of what the model takes, with one image; None for the usual. ``others``: models to set beside it.
    ``with_twins``: whether a backbone's all-linear and all-softmax twins run too. ``limit_s``: to look for the formula
    of a model that has no spec. ``isolate``: whether every size is measured in a process of its own. ``machine``: whose
    ceilings predict the model's time, None predicts none.
    """

    source: ModelSource
    resolutions: tuple[Resolution, ...]
    settings: Settings
    budget_s: float | None
    command: str = ""
    shape: InputShape | None = None
    others: tuple[ModelSource, ...] = ()
    with_twins: bool = True
    limit_s: float = LIMIT_S
    isolate: bool = False
    machine: Machine | None = None


@dataclass
class _Contestant:
    """One model on its way to a ``Contender``."""

    role: str
    source: ModelSource
    shape: InputShape
    formula: ModelFormula | None = None
    workload: Workload | None = None
    cases: list[Case] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    complexity: Complexity | None = None
    growth: Growth | None = None

    @property
    def sized(self) -> bool:
        """Whether the model is built for every size anew."""
        return self.formula is not None and self.formula.sized


class Sweep:
    """One run of ``sola-profile``: go through ``run()`` as far as it gets, then ask for the ``profile()``."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.interrupted = False
        self._shape = (plan.shape or plan.source.default_input).with_batch(plan.settings.batch)
        self._contestants = [
            _Contestant(
                role, source, self._shape if role == MODEL else source.default_input.with_batch(self._shape.batch)
            )
            for role, source in contenders(plan).items()
        ]
        self._rows: dict[Case, Row] = {}
        self._measuring: Measuring | Isolated | None = None
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with cpu_threads(plan.settings.threads):
            self._environment = environment()

    def run(self) -> Iterator[Progress]:
        """Analyse all cases, then measure them; yields after every finished piece of work."""
        with cpu_threads(self.plan.settings.threads):
            yield from self._analyse()
            if self.plan.budget_s is not None and self._rows:
                measure = Isolated if self.plan.isolate else Measuring
                self._measuring = measure(list(self._rows.values()), self.plan.settings, self.plan.budget_s)
                yield from self._measuring.run()

    @property
    def measuring(self) -> bool:
        """Whether measuring has begun, so that there is something to lose."""
        return self._measuring is not None

    def profile(self) -> Profile:
        """Everything that is finished by now."""
        plan = self.plan
        contenders = tuple(filter(None, map(self._contender, self._contestants)))
        return Profile(
            command=plan.command,
            started=self._started,
            environment=self._environment,
            settings=plan.settings,
            shape=self._shape,
            budget_s=plan.budget_s,
            contenders=contenders,
            helpful_sizes=helpful_sizes([round(size.pixels**0.5) for size in plan.resolutions], self._stride),
            interrupted=self.interrupted,
            crossovers=tuple(crossovers(contenders)),
            roofs=None if plan.machine is None else _roofs(plan.machine),
        )

    @property
    def refused(self) -> dict[str, str]:
        """Sizes that the model doesn't take, with the reason."""
        return self._contestants[0].refused

    @property
    def _stride(self) -> int:
        model = self._contestants[0]
        if model.source.spec is not None:
            return model.source.spec.stride
        return 1 if model.formula is None else model.formula.stride

    def _contender(self, found: _Contestant) -> Contender | None:
        rows = tuple(self._finished(case) for case in found.cases if case in self._rows)
        if not rows:
            return None
        spec = found.source.spec
        patch = _patch(found, rows) if spec is None else spec.patch_size
        growing = scaling(found.complexity, rows, patch, self._stride)
        return Contender(found.role, found.source, rows, growing, patch, found.growth, found.refused)

    def _finished(self, case: Case) -> Row:
        return self._rows[case] if self._measuring is None else self._measuring.row(case)

    def _analyse(self) -> Iterator[Progress]:
        total, done = len(self._contestants) * len(self.plan.resolutions), 0
        for found in self._contestants:
            yield Progress("analysing", done, total, f"the growth of {found.source.name}")
            self._find_growth(found)
            for resolution in self.plan.resolutions:
                yield Progress("analysing", done, total, f"{found.source.name} at {resolution}")
                case = Case(found.source, resolution, self.plan.settings, found.shape, found.sized)
                done += 1
                try:
                    row = self._row(case, found)
                    # one timeline is enough to look at
                    kept = found.role == MODEL and resolution == self.plan.resolutions[-1]
                    self._rows[case] = row if kept else replace(row, memory_timeline=())
                except Exception as error:
                    # a backbone of ours takes every size, others may not; checkpoints are missing at all of them
                    if case.spec is not None or (found.role == MODEL and isinstance(error, NoCheckpointsError)):
                        raise
                    found.refused[str(resolution)] = first_line(error)
                else:
                    found.cases.append(case)

    def _find_growth(self, found: _Contestant) -> None:
        spec = found.source.spec
        if spec is None or found.role == MODEL:
            found.formula = model_formula(found.source, found.shape, self.plan.settings.dtype, self.plan.limit_s)
        if spec is not None:
            found.complexity = complexity(spec)
        elif found.formula is not None:
            found.growth, found.complexity = growth(found.formula), formula_complexity(found.formula)

    def _row(self, case: Case, found: _Contestant) -> Row:
        if found.workload is None or case.sized:
            found.workload = build(
                case.source, case.settings, "meta", shape=case.shape, resolution=case.resolution if case.sized else None
            )
        if case.spec is None and found.formula is not None:
            row = analyse_model(case, found.workload, found.formula)
        else:
            row = analyse(case, found.workload, found.formula)
        return row if found.role != MODEL or self.plan.machine is None else with_time(row, self.plan.machine)


def _patch(found: _Contestant, rows: Sequence[Row]) -> int:
    """Pixels a side of what N counts, as the formula has it; without one as near as the largest image tells."""
    if found.formula is not None and found.formula.recording is not None:
        return found.formula.recording.patch
    largest = max(rows, key=lambda row: row.resolution.pixels)
    patch: float = (largest.resolution.pixels / max(1, largest.tokens)) ** 0.5
    return max(1, round(patch))


def _roofs(machine: Machine) -> Roofs | None:
    """The highest rate of products, and the bandwidth of the largest working set; None where one isn't known."""
    products = [surface.best for surface in machine.surfaces.values() if surface.unit == FLOPS]
    if not products or TRAFFIC not in machine.surfaces:
        return None
    return Roofs(max(products), machine.surfaces[TRAFFIC].rates[-1][1])


def contenders(plan: Plan) -> dict[str, ModelSource]:
    """The model, those of its twins that differ from it, and the others, by role."""
    found = {MODEL: plan.source}
    spec = plan.source.spec
    if spec is not None and plan.with_twins:
        found.update({role: ModelSource.of(twin) for role, twin in twins(spec).items() if twin.pattern != spec.pattern})
    known = set(found.values())
    found.update({source.name: source for source in plan.others if source not in known})
    return found
