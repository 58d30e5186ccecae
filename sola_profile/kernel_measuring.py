"""Measures kernel cases: all routes of a case warm up, then take turns, round after round, on the same inputs.

A route that can't run, or not often enough in the case's share of the time, says so; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import torch

from sola_profile.compare.ratios import ratio
from sola_profile.cost.kernels import work
from sola_profile.kernel_case import KernelCase
from sola_profile.kernel_result import KernelRow, RouteResult
from sola_profile.kernel_workload import Inputs, make_inputs, make_step, repeated
from sola_profile.machine import available_bytes
from sola_profile.measure.accuracy import Sampled, sample
from sola_profile.measure.latency import Latency, Sample, Timer, WarmUp, interleave, summarize, timer_for, warm_up
from sola_profile.measuring import is_out_of_memory
from sola_profile.peers.table import Function, Route, compile_route, routes
from sola_profile.result import LeftOut, Missing, OutOfMemory, OverBudget
from sola_profile.workload import Step, cpu_threads

CPU = torch.device("cpu")

# a sample shorter than this would hold the noise of the clock and of Python; several calls make one then
SHORTEST_SAMPLE_S = 5e-4
# a route's turn in a round: several samples of a short call, one of a long one
TURN_S = 0.01
# a ratio says something from so many rounds on; fewer are not worth a long call
FEWEST_ROUNDS = 3
# what one round costs beside its samples: an untimed run of short calls, in whole runs
RUNS_PER_ROUND = 1.3
WARMUP_SHARE = 0.2


@dataclass(frozen=True)
class Sampling:
    """``rounds``: at most. ``compiled``: with the routes under ``torch.compile``."""

    rounds: int
    compiled: bool


@dataclass
class Contestant:
    """A step that is ready to be timed; one step is so many ``calls``."""

    step: Step
    calls: int
    warm: WarmUp
    samples: list[Sample[str]] = field(default_factory=list)

    @property
    def run_s(self) -> float:
        """What a step takes."""
        return min(self.warm.times_s)

    def latency(self) -> Latency | None:
        """Times per call; None without samples."""
        if not self.samples:
            return None
        per_call = [replace(sample, time_s=sample.time_s / self.calls) for sample in self.samples]
        return summarize(per_call, WarmUp(tuple(time / self.calls for time in self.warm.times_s), self.warm.settled))


def race(
    contestants: Mapping[str, Contestant], timer: Timer, rounds: int, deadline: float, lost: Callable[[str, str], None]
) -> None:
    """Sample all contestants in turn, into their ``samples``; ``lost`` is told of one that fails, and why."""

    def on_failure(name: str, error: BaseException) -> bool:
        lost(name, _why(error))
        return True

    steps = {name: contestant.step for name, contestant in contestants.items()}
    warm = {name: contestant.warm for name, contestant in contestants.items()}

    def enough(samples: Sequence[Sample[str]]) -> bool:
        return samples[-1].round + 1 >= rounds

    for one in interleave(steps, warm, timer, deadline, on_failure, enough, TURN_S):
        contestants[one.key].samples.append(one)


def prepare(step: Step, timer: Timer, limit_s: float) -> Contestant:
    """Run a step until it is steady, and repeat it in one sample where it is short."""
    first_s = timer.time(step)
    again_s = min(first_s, timer.time(step)) if first_s < limit_s else first_s
    calls = max(1, ceil(SHORTEST_SAMPLE_S / max(again_s, 1e-9)))
    longer = repeated(step, calls)
    return Contestant(longer, calls, warm_up(longer, timer, limit_s, again_s * calls))


class KernelMeasuring:
    """Measures cases one by one; errors against float64 are found once for all numbers of threads."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._timer = timer_for(CPU)
        self._errors: dict[tuple[KernelCase, str], float] = {}
        # time spent on torch.compile, which is neither a run nor the budget's concern
        self.compiling_s = 0.0

    def measure(self, case: KernelCase, allowance_s: float) -> KernelRow:
        """All routes of a case within about ``allowance_s``; compiling comes on top."""
        end = self._timer.now() + allowance_s
        with cpu_threads(case.threads):
            inputs = make_inputs(case)
            sampled = sample(case, inputs)
            entrants = [
                _Entrant(self._timer, case, route) for route in routes(case.op, compiled=self._sampling.compiled)
            ]
            for number, entrant in enumerate(entrants):
                entrant.prepare(inputs, allowance_s / (2 * (len(entrants) - number)))
                self._compare(entrant, sampled, inputs)
            # the first case of a kind spends more on the way; half of the share is always left for sampling
            self._race(entrants, allowance_s, max(end, self._timer.now() + allowance_s / 2))
        self.compiling_s += sum(entrant.compile_s or 0.0 for entrant in entrants)
        ours = entrants[0].latency()
        return KernelRow(case, work(case), tuple(entrant.result(ours) for entrant in entrants))

    def _compare(self, entrant: _Entrant, sampled: Sampled, inputs: Inputs) -> None:
        """The error of a route that runs."""
        if entrant.function is None:
            return
        key = (replace(entrant.case, threads=1), entrant.route.name)
        if key not in self._errors:
            self._errors[key] = sampled.error(entrant.function, inputs)
        entrant.error = self._errors[key]

    def _race(self, entrants: Sequence[_Entrant], allowance_s: float, deadline: float) -> None:
        """Time those that are ready, leaving out the slowest as long as they would leave too few rounds."""
        ready = {e.route.name: e for e in entrants if e.contestant is not None}

        def round_s() -> float:
            return sum(RUNS_PER_ROUND * max(e.run_s, min(TURN_S, 10 * e.run_s)) for e in ready.values())

        while len(ready) > 1 and round_s() * FEWEST_ROUNDS > allowance_s:
            slowest = max((e for e in ready.values() if e is not entrants[0]), key=lambda e: e.run_s)
            slowest.missing = OverBudget(slowest.run_s / slowest.calls, allowance_s)
            del ready[slowest.route.name]
        contestants = {name: e.contestant for name, e in ready.items() if e.contestant is not None}

        def lost(name: str, why: str) -> None:
            ready[name].missing = LeftOut(why)

        race(contestants, self._timer, self._sampling.rounds, deadline, lost)


class _Entrant:
    """One route of one case on its way from refusal or preparation to a result."""

    def __init__(self, timer: Timer, case: KernelCase, route: Route) -> None:
        self.case = case
        self.route = route
        self.function: Function | None = None
        self.contestant: Contestant | None = None
        self.compile_s: float | None = None
        self.error: float | None = None
        reason = route.refusal(case)
        self.missing: Missing | None = LeftOut(reason) if reason else None
        self._timer = timer

    @property
    def run_s(self) -> float:
        """What a step takes."""
        return self.contestant.run_s if self.contestant else 0.0

    @property
    def calls(self) -> int:
        """Calls of a step."""
        return self.contestant.calls if self.contestant else 1

    def prepare(self, inputs: Inputs, limit_s: float) -> None:
        """Compile if that is asked for, and warm up; what goes wrong is the result then."""
        if self.missing is not None:
            return
        try:
            function = compile_route(self.route)
            step = make_step(self.case, function, inputs)
            if self.route.compiled:
                self.compile_s = self._timer.time(step)
            self.contestant = prepare(step, self._timer, WARMUP_SHARE * limit_s)
        except (MemoryError, RuntimeError) as error:
            self.missing = OutOfMemory(available_bytes(CPU)) if is_out_of_memory(error) else LeftOut(_why(error))
            # the frames of the traceback hold the tensors that did fit
            error.__traceback__ = None
            return
        self.function = function

    def latency(self) -> Latency | None:
        """Times per call."""
        return self.contestant.latency() if self.contestant and self.missing is None else None

    def result(self, ours: Latency | None) -> RouteResult:
        """What is known of the route, its ratio to ours included."""
        latency = self.latency()
        compared = ratio(ours, latency) if ours and latency and latency is not ours else None
        missing = self.missing
        if latency is None and missing is None:
            missing = OverBudget(self.run_s / self.calls, 0.0)
        return RouteResult(
            name=self.route.name,
            what=self.route.what,
            calls=self.calls,
            latency=latency,
            ratio=compared,
            error=self.error,
            compile_s=self.compile_s,
            missing=None if latency is not None else missing,
        )


def _why(error: BaseException) -> str:
    first = str(error).strip().splitlines() or [""]
    return f"failed: {type(error).__name__}: {first[0]}"
