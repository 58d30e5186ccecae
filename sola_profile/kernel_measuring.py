"""Measures kernel cases: all routes of a case warm up, then take turns, round after round, on the same inputs.

A route that can't run, or takes more than the case's share of the time, says so; the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sola_profile.compare.ratios import ratio
from sola_profile.cost.kernels import work
from sola_profile.kernel_case import KernelCase
from sola_profile.kernel_result import KernelRow, RouteResult
from sola_profile.kernel_workload import Inputs, make_inputs, make_step
from sola_profile.measure.accuracy import Sampled, sample
from sola_profile.measure.contest import Contestant, prepare, race
from sola_profile.measure.latency import Latency, Timer, timer_for
from sola_profile.measuring import is_out_of_memory
from sola_profile.peers.table import Route, compile_route, routes
from sola_profile.result import LeftOut, Missing, OverBudget
from sola_profile.workload import cpu_threads

CPU = torch.device("cpu")

# a route is tried when so many of its runs fit in the case's share: one for its error, one to time
FEWEST_RUNS = 2
WARMUP_SHARE = 0.05


@dataclass(frozen=True)
class Sampling:
    """``rounds``: at most. ``compiled``: with the routes under ``torch.compile``."""

    rounds: int
    compiled: bool


@dataclass
class _Entrant:
    """One route of one case, and what is known of it so far."""

    route: Route
    contestant: Contestant | None = None
    compile_s: float | None = None
    error: float | None = None
    missing: Missing | None = None

    def latency(self) -> Latency | None:
        """Times per call."""
        return self.contestant.latency() if self.contestant is not None and self.missing is None else None

    def result(self, ours: Latency | None) -> RouteResult:
        """The route with its ratio to ours, which is None for ours itself."""
        latency = None if ours is None else self.latency()
        missing = None if latency is not None else self.missing or LeftOut("no time was left")
        return RouteResult(
            name=self.route.name,
            what=self.route.what,
            calls=self.contestant.calls if self.contestant is not None else 1,
            latency=latency,
            ratio=None if ours is None or latency is None or latency == ours else ratio(ours, latency),
            error=self.error,
            compile_s=self.compile_s,
            missing=missing,
        )


class KernelMeasuring:
    """Measures cases one by one; errors against float64 are found once for all numbers of threads."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._timer: Timer = timer_for(CPU)
        self._errors: dict[tuple[KernelCase, str], float] = {}
        # seconds per unit of size, of the last case of every route in every setting
        self._paces: dict[tuple[str, ...], float] = {}
        # time spent on torch.compile, which is neither a run nor the budget's concern
        self.compiling_s = 0.0

    def measure(self, case: KernelCase, allowance_s: float) -> KernelRow:
        """All routes of a case within about ``allowance_s``; compiling comes on top."""
        end, compiled_before_s = self._timer.now() + allowance_s, self.compiling_s
        entrants = [_Entrant(route) for route in routes(case.op, compiled=self._sampling.compiled)]
        with cpu_threads(case.threads):
            inputs = make_inputs(case)
            sampled = sample(case, inputs)
            for entrant in entrants:
                self._enter(entrant, sampled, inputs, allowance_s)
            end += self.compiling_s - compiled_before_s
            # half of the share is left for sampling, whatever has happened on the way
            self._race(entrants, max(end - self._timer.now(), allowance_s / 2))
        ours = entrants[0].latency()
        return KernelRow(case, work(case), tuple(entrant.result(ours) for entrant in entrants))

    def _enter(self, entrant: _Entrant, sampled: Sampled, inputs: Inputs, allowance_s: float) -> None:
        """Refuse, or compile, compare with float64 and warm up; what goes wrong is the result then."""
        case, route = sampled.case, entrant.route
        entrant.missing = self._refusal(case, route, allowance_s)
        if entrant.missing is not None:
            return
        try:
            self._start(entrant, sampled, inputs, WARMUP_SHARE * allowance_s)
        except (MemoryError, RuntimeError) as error:
            entrant.missing = LeftOut(describe(error))
            # the frames of the traceback hold the tensors that did fit
            error.__traceback__ = None

    def _refusal(self, case: KernelCase, route: Route, allowance_s: float) -> Missing | None:
        if reason := route.refusal(case):
            return LeftOut(reason)
        pace = self._paces.get(_setting(case, route))
        if pace is None or route is routes(case.op, compiled=False)[0]:
            return None
        estimated_s = pace * route.size(case)
        return OverBudget(estimated_s, round(allowance_s, 1)) if FEWEST_RUNS * estimated_s > allowance_s else None

    def _start(self, entrant: _Entrant, sampled: Sampled, inputs: Inputs, warm_up_s: float) -> None:
        case, route = sampled.case, entrant.route
        function = compile_route(route)
        step = make_step(case, function, inputs)
        if route.compiled:
            entrant.compile_s = self._timer.time(step)
            self.compiling_s += entrant.compile_s
        key, first_s = (replace(case, threads=1), route.name), None
        if key not in self._errors:
            start = self._timer.now()
            self._errors[key] = sampled.error(function, inputs)
            # a run with another gradient, and a look at the result
            first_s = self._timer.now() - start
        entrant.error = self._errors[key]
        entrant.contestant = prepare(step, self._timer, warm_up_s, first_s)
        self._paces[_setting(case, route)] = entrant.contestant.call_s / route.size(case)

    def _race(self, entrants: list[_Entrant], limit_s: float) -> None:
        ready = {entrant.route.name: entrant for entrant in entrants if entrant.missing is None}

        def on_failure(name: str, error: BaseException) -> bool:
            ready[name].missing = LeftOut(describe(error))
            return isinstance(error, (MemoryError, RuntimeError))

        contestants = {name: e.contestant for name, e in ready.items() if e.contestant is not None}
        race(contestants, self._timer, self._sampling.rounds, limit_s, on_failure)


def describe(error: BaseException) -> str:
    """What went wrong, in one line."""
    if is_out_of_memory(error):
        return "out of memory"
    first = str(error).strip().splitlines() or [""]
    return f"failed: {type(error).__name__}: {first[0]}"


def _setting(case: KernelCase, route: Route) -> tuple[str, ...]:
    return case.op, route.name, case.dtype, case.mode, str(case.threads)
