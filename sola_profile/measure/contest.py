"""A contest of a few steps that take turns for a number of rounds, so that their ratios can be taken round by round."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf

from sola_profile.measure.allocator import settle_allocator
from sola_profile.measure.latency import Latency, Sample, Timer, WarmUp, interleave, summarize, warm_up
from sola_profile.workload import Step

# a sample shorter than this would hold the noise of the clock and of Python; several calls make one then
SHORTEST_SAMPLE_S = 5e-4
# a turn in a round: several samples of a short step, one of a long one
TURN_S = 0.01


@dataclass
class Contestant:
    """A step that is ready to be timed; one step is so many ``calls``."""

    step: Step
    calls: int
    warm: WarmUp
    samples: list[Sample[str]] = field(default_factory=list)

    @property
    def call_s(self) -> float:
        """What one call takes, by the fastest run of the warm-up."""
        return min(self.warm.times_s) / self.calls

    def latency(self) -> Latency | None:
        """Times per call; None without samples."""
        if not self.samples:
            return None
        per_call = [replace(sample, time_s=sample.time_s / self.calls) for sample in self.samples]
        return summarize(per_call, WarmUp(tuple(time / self.calls for time in self.warm.times_s), self.warm.settled))


def prepare(step: Step, timer: Timer, limit_s: float, first_s: float | None = None) -> Contestant:
    """Run a step until it is steady, for ``limit_s`` at most, and repeat it in one sample where it is short.

    ``first_s``: the time of a first run, if there was one.
    """
    settle_allocator()
    call_s = timer.time(step) if first_s is None else first_s
    if call_s < limit_s:
        call_s = min(call_s, timer.time(step))
    calls = max(1, ceil(SHORTEST_SAMPLE_S / max(call_s, 1e-9)))
    longer = _repeated(step, calls)
    return Contestant(longer, calls, warm_up(longer, timer, limit_s, call_s * calls))


def race(
    contestants: Mapping[str, Contestant],
    timer: Timer,
    rounds: int,
    limit_s: float,
    on_failure: Callable[[str, BaseException], bool],
) -> None:
    """Sample all contestants in turn, into their ``samples``, until ``rounds`` are full or the time is up.

    The first round is run in full; ``limit_s`` is for those after it. ``on_failure``: as in ``interleave``.
    """

    def sample(names: Collection[str], first: int, until: float, most: int) -> None:
        steps = {name: contestants[name].step for name in names}
        warm = {name: contestants[name].warm for name in names}

        def enough(samples: Sequence[Sample[str]]) -> bool:
            return samples[-1].round + 1 >= most

        for one in interleave(steps, warm, timer, until, on_failure, enough, TURN_S):
            contestants[one.key].samples.append(replace(one, round=first + one.round))

    sample(contestants, 0, inf, 1)
    if rounds > 1:
        # without those that have failed
        sample(
            [name for name, contestant in contestants.items() if contestant.samples],
            1,
            timer.now() + limit_s,
            rounds - 1,
        )


def raise_failure(name: str, error: BaseException) -> bool:
    """For contests in which nothing may fail."""
    del name, error
    return False


def _repeated(step: Step, times: int) -> Step:
    if times == 1:
        return step

    def steps() -> None:
        for _ in range(times):
            step()

    return steps
