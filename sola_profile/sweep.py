"""The conductor: cases → cost and measurement → comparison → one ``Profile``.

A sweep is a generator that reports after every finished piece of work. What is finished stays in it, so that an
interruption or a failure later on loses nothing: ``profile()`` can be asked for at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from sola_profile.case import Case, Resolution, Settings
from sola_profile.compare.scaling import fit_quadratic, helpful_sizes, local_slopes
from sola_profile.compare.witnesses import agreement
from sola_profile.cost.closed_form import closed_form, complexity
from sola_profile.cost.liveness import predict_peak
from sola_profile.machine import environment
from sola_profile.measure import flop_counter, fvcore_counter
from sola_profile.measure.statistics import bootstrap_medians
from sola_profile.measuring import Measuring, Progress
from sola_profile.result import MODEL, Contender, Profile, Row, Scaling
from sola_profile.workload import Workload, build, cpu_threads
from sola_vision.presets import twins
from sola_vision.spec import BackboneSpec


@dataclass(frozen=True)
class Plan:
    """What to sweep over. ``budget_s``: time for all measuring, None measures nothing."""

    spec: BackboneSpec
    resolutions: tuple[Resolution, ...]
    settings: Settings
    budget_s: float | None
    command: str = ""


class Sweep:
    """One run of ``sola-profile``: go through ``run()`` as far as it gets, then ask for the ``profile()``."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.interrupted = False
        self._specs = contenders(plan.spec)
        self._rows: dict[Case, Row] = {}
        self._measuring: Measuring | None = None
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with cpu_threads(plan.settings.threads):
            self._environment = environment()

    def run(self) -> Iterator[Progress]:
        """Analyse all cases, then measure them; yields after every finished piece of work."""
        with cpu_threads(self.plan.settings.threads):
            yield from self._analyse()
            if self.plan.budget_s is not None:
                self._measuring = Measuring(list(self._rows.values()), self.plan.settings, self.plan.budget_s)
                yield from self._measuring.run()

    @property
    def measuring(self) -> bool:
        """Whether measuring has begun, so that there is something to lose."""
        return self._measuring is not None

    def profile(self) -> Profile:
        """Everything that is finished by now."""
        found = []
        for role, spec in self._specs.items():
            rows = tuple(self._finished(case) for case in self._cases(spec) if case in self._rows)
            if rows:
                found.append(Contender(role, spec, rows, scaling(spec, rows)))
        plan = self.plan
        stride = plan.spec.patch_size * 2 ** (len(plan.spec.dims) - 1)
        return Profile(
            command=plan.command,
            started=self._started,
            environment=self._environment,
            settings=plan.settings,
            budget_s=plan.budget_s,
            contenders=tuple(found),
            helpful_sizes=helpful_sizes([round(size.pixels**0.5) for size in plan.resolutions], stride),
            interrupted=self.interrupted,
        )

    def _cases(self, spec: BackboneSpec) -> list[Case]:
        return [Case(spec, resolution, self.plan.settings) for resolution in self.plan.resolutions]

    def _finished(self, case: Case) -> Row:
        return self._rows[case] if self._measuring is None else self._measuring.row(case)

    def _analyse(self) -> Iterator[Progress]:
        total, done = len(self._specs) * len(self.plan.resolutions), 0
        for role, spec in self._specs.items():
            workload = build(spec, self.plan.settings, "meta")
            for case in self._cases(spec):
                yield Progress("analysing", done, total, f"{spec.name} at {case.resolution}")
                self._rows[case] = analyse(case, workload, witnesses=role == MODEL)
                done += 1


def contenders(spec: BackboneSpec) -> dict[str, BackboneSpec]:
    """The model and those of its twins that differ from it, by role."""
    found = {MODEL: spec}
    found.update({role: twin for role, twin in twins(spec).items() if twin.pattern != spec.pattern})
    return found


def analyse(case: Case, workload: Workload, *, witnesses: bool) -> Row:
    """Everything that can be known of a case without running it; ``witnesses`` asks the two counters as well."""
    closed = closed_form(case.spec, case.resolution, case.settings.batch)
    agreed = step_macs = None
    if witnesses:
        counters = (flop_counter.count_forward, fvcore_counter.count_forward)
        agreed = agreement(closed, [count(workload, case.resolution) for count in counters])
        if case.settings.mode == "train":
            step_macs = flop_counter.count_step(workload.step(workload.image(case.resolution))).macs
    return Row(
        case=case,
        closed=closed,
        counted_parameters=sum(parameter.numel() for parameter in workload.model.parameters()),
        predicted_memory=predict_peak(workload, case.resolution),
        agreement=agreed,
        step_macs=step_macs,
    )


def scaling(spec: BackboneSpec, rows: Sequence[Row]) -> Scaling:
    """How the rows of one backbone grow with the number of tokens."""
    rows = sorted(rows, key=lambda row: row.tokens)
    timed = [(row.tokens, row.latency) for row in rows if row.latency is not None]
    tokens = [count for count, _ in timed]
    medians = [latency.median_s for _, latency in timed]
    resampled = [bootstrap_medians(latency.samples_s, latency.rounds) for _, latency in timed]
    return Scaling(
        complexity=complexity(spec),
        macs_slopes=local_slopes([row.tokens for row in rows], [float(row.closed.macs) for row in rows]),
        latency_fit=fit_quadratic(tokens, medians, resampled),
        latency_slopes=local_slopes(tokens, medians, resampled),
    )
