"""Measured latency: warm up until steady, then sample all contestants in turn, round after round.

Interleaving keeps a drift of the machine from faking a slope between sizes or a gap between models. All samples are
kept; none is dropped as an outlier. What speaks against a result is said beside it (``Latency.doubts``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from sola_profile.measure.statistics import Interval, median_interval, rolling_median_settled
from sola_profile.workload import Step

Key = TypeVar("Key")

FEWEST_SAMPLES = 10
MOST_SAMPLES = 100
# a contestant keeps the machine this long before the next has its turn, or for one run if that is longer
TURN_S = 0.25
MOST_RUNS_PER_TURN = 10
# shorter runs find their weights displaced by the contestant before them, so their turn starts with an untimed run
COLD_BELOW_S = 0.1

WARMUP_WINDOW = 3
WARMUP_TOLERANCE = 0.01
MOST_WARMUP_RUNS = 30

# sampling may stop early when the interval is this narrow; a result is in doubt when it is wider than that
NARROW = 0.01
WIDE = 0.05


class Timer(Protocol):
    """Times one step in seconds, and tells the time in between."""

    def time(self, step: Step) -> float:
        """Run the step and return how long it took."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""


class HostTimer:
    """The host's monotonic clock: for CPU, where a step has ended when it returns."""

    def time(self, step: Step) -> float:
        """Run the step and return how long it took."""
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    def now(self) -> float:
        """Seconds since some start."""
        return time.perf_counter()


class CudaTimer(HostTimer):
    """CUDA events around the step, so that launches in flight before it don't count."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def time(self, step: Step) -> float:
        """Run the step and return how long the device took."""
        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            step()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3


def timer_for(device: torch.device) -> Timer:
    """The clock that is right for a device."""
    return CudaTimer(device) if device.type == "cuda" else HostTimer()


@dataclass(frozen=True)
class WarmUp:
    """Runs before the first sample: their durations, and whether they became steady."""

    times_s: tuple[float, ...]
    settled: bool


@dataclass(frozen=True)
class Doubt:
    """What speaks against a result: ``few samples`` (their number), ``wide interval`` (relative half width) or
    ``drift`` (median of the later half of the samples over that of the earlier half, minus 1).
    """

    reason: str
    value: float


@dataclass(frozen=True)
class Latency:
    """Time of one step: every sample with the round it came from, the median and what speaks against it."""

    samples_s: tuple[float, ...]
    rounds: tuple[int, ...]
    warm_up: WarmUp
    median_s: float
    interval_s: Interval
    doubts: tuple[Doubt, ...]

    @property
    def unstable(self) -> bool:
        """Whether anything speaks against the result."""
        return bool(self.doubts)


@dataclass(frozen=True)
class Sample(Generic[Key]):
    """One timed run of one contestant."""

    key: Key
    round: int
    time_s: float


def warm_up(step: Step, timer: Timer, limit_s: float, first_s: float) -> WarmUp:
    """Go on from a first run until the rolling median moves less than 1 %, or a time limit is reached."""
    times = [first_s]
    start = timer.now()
    while len(times) < MOST_WARMUP_RUNS and timer.now() - start + times[-1] <= limit_s:
        times.append(timer.time(step))
        if rolling_median_settled(times, WARMUP_WINDOW, WARMUP_TOLERANCE):
            return WarmUp(tuple(times), settled=True)
    return WarmUp(tuple(times), settled=False)


def summarize(samples: Sequence[Sample[Key]], warm: WarmUp) -> Latency:
    """Median, interval and doubts of one contestant's samples."""
    times = tuple(sample.time_s for sample in samples)
    rounds = tuple(sample.round for sample in samples)
    median = float(np.median(times))
    interval = median_interval(times, rounds)
    return Latency(times, rounds, warm, median, interval, tuple(_doubts(times, interval, median)))


def _doubts(times: Sequence[float], interval: Interval, median: float) -> Iterator[Doubt]:
    if len(times) < FEWEST_SAMPLES:
        yield Doubt("few samples", len(times))
    if (width := interval.relative_half_width(median)) > WIDE:
        yield Doubt("wide interval", width)
    half = len(times) // 2
    if half >= FEWEST_SAMPLES // 2:
        drift = float(np.median(times[half:]) / np.median(times[:half])) - 1
        if abs(drift) > WIDE:
            yield Doubt("drift", drift)


def interleave(
    steps: Mapping[Key, Step],
    warm: Mapping[Key, WarmUp],
    timer: Timer,
    deadline: float,
    on_failure: Callable[[Key, BaseException], bool],
    enough: Callable[[Sequence[Sample[Key]]], bool] | None = None,
    turn_s: float = TURN_S,
    reserved_s: Callable[[Key], float] = lambda _: 0.0,
) -> Iterator[Sample[Key]]:
    """Sample all contestants in rounds until each has enough, or until the timer passes ``deadline``.

    A contestant is done when ``enough`` says so of its samples; unless given, that is after ``FEWEST_SAMPLES`` when
    its interval is narrow, and after ``MOST_SAMPLES`` anyway. One whose step raises leaves the race when
    ``on_failure`` answers True; else the error goes up. ``turn_s``: see ``TURN_S``. ``reserved_s``: time that one must
    leave to others; its turn is passed over while there is no more than that.
    """
    enough = enough or _enough
    taken: dict[Key, list[Sample[Key]]] = {key: [] for key in steps}
    waiting = list(steps)
    number = 0
    progress = True
    while waiting and progress:
        progress = False
        for key in list(waiting):
            expected = min(warm[key].times_s)
            if timer.now() + expected > deadline:
                waiting.remove(key)
                continue
            if timer.now() + expected + reserved_s(key) > deadline:
                continue
            progress = True
            try:
                for sample in _turn(key, steps[key], timer, expected, number, turn_s):
                    taken[key].append(sample)
                    yield sample
            except Exception as error:
                if not on_failure(key, error):
                    raise
                waiting.remove(key)
                continue
            if enough(taken[key]):
                waiting.remove(key)
        number += 1


def _turn(key: Key, step: Step, timer: Timer, expected_s: float, number: int, turn_s: float) -> Iterator[Sample[Key]]:
    runs = max(1, min(MOST_RUNS_PER_TURN, int(turn_s / max(expected_s, 1e-9))))
    if expected_s < COLD_BELOW_S:
        step()
    for _ in range(runs):
        yield Sample(key, number, timer.time(step))


def _enough(samples: Sequence[Sample[Key]]) -> bool:
    if len(samples) < FEWEST_SAMPLES:
        return False
    if len(samples) >= MOST_SAMPLES:
        return True
    times, rounds = [s.time_s for s in samples], [s.round for s in samples]
    return median_interval(times, rounds).relative_half_width(float(np.median(times))) < NARROW
