"""Warm-up, sampling and intervals, on a clock that the test moves."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest
from fake_timer import FakeTimer

from sola_profile.measure import latency
from sola_profile.measure.latency import FEWEST_SAMPLES, MOST_SAMPLES, Sample, WarmUp, interleave, summarize, warm_up
from sola_profile.measure.statistics import Interval, bootstrap_medians, median_interval, rolling_median_settled


@pytest.fixture
def timer():
    return FakeTimer()


def never(key, error):
    return False


def race(timer, steps, budget_s, expected_s=None):
    warm = {key: WarmUp(((expected_s or {}).get(key, 0.2),), settled=True) for key in steps}
    return list(interleave(steps, warm, timer, timer.now() + budget_s, never))


def test_warm_up_stops_when_the_rolling_median_stands_still(timer):
    found = warm_up(timer.step(4.0, 3.0, 2.0, 1.0), timer, limit_s=100, first_s=5.0)
    assert found.settled
    assert found.times_s[0] == 5.0
    assert found.times_s == (5.0, 4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0)[: len(found.times_s)]
    assert found.times_s[-latency.WARMUP_WINDOW :] == (1.0,) * latency.WARMUP_WINDOW


def test_warm_up_that_never_settles_ends_at_its_limits(timer):
    by_time = warm_up(timer.step(*(1.5**n for n in range(20))), timer, limit_s=10, first_s=1.0)
    assert not by_time.settled
    assert sum(by_time.times_s[1:]) <= 10
    by_number = warm_up(timer.step(*(1.1**n for n in range(100))), timer, limit_s=1e9, first_s=1.0)
    assert not by_number.settled
    assert len(by_number.times_s) == latency.MOST_WARMUP_RUNS


def test_a_slow_first_run_leaves_no_time_for_another(timer):
    assert warm_up(timer.step(9.0), timer, limit_s=5, first_s=9.0) == WarmUp((9.0,), settled=False)
    assert timer.now() == 0


def test_contestants_take_turns(timer):
    steps = {"a": timer.step(0.5), "b": timer.step(0.7), "c": timer.step(1.1)}
    keys = [sample.key for sample in race(timer, steps, budget_s=1000)]
    assert keys[:6] == ["a", "b", "c", "a", "b", "c"]


def test_short_runs_get_several_samples_a_turn_behind_an_untimed_one(timer):
    samples = race(timer, {"short": timer.step(0.01, 0.02), "long": timer.step(1.0)}, 60, {"short": 0.02})
    first_turn = [sample for sample in samples if sample.round == 0 and sample.key == "short"]
    assert len(first_turn) == latency.MOST_RUNS_PER_TURN
    # the first run of the turn took 0.01 and is not among them
    assert {round(sample.time_s, 6) for sample in first_turn} == {0.02}


def test_steady_contestants_stop_early_and_restless_ones_go_on(timer):
    steps = {"steady": timer.step(0.2), "restless": timer.step(*([0.2, 0.4] * 400))}
    samples = race(timer, steps, budget_s=1e6)
    numbers = {key: sum(sample.key == key for sample in samples) for key in steps}
    assert numbers["steady"] == FEWEST_SAMPLES
    assert numbers["restless"] == MOST_SAMPLES


def test_the_deadline_is_kept(timer):
    samples = race(timer, {"a": timer.step(1.0), "b": timer.step(3.0)}, 30, {"a": 1.0, "b": 3.0})
    assert timer.now() <= 30
    assert {sample.key for sample in samples} == {"a", "b"}


def test_a_failing_contestant_leaves_and_the_rest_goes_on(timer):
    def fails():
        raise MemoryError

    seen = []

    def on_failure(key, error):
        seen.append((key, type(error)))
        return True

    steps = {"bad": fails, "good": timer.step(0.2)}
    warm = dict.fromkeys(steps, WarmUp((0.2,), settled=True))
    samples = list(interleave(steps, warm, timer, 1e9, on_failure))
    assert seen == [("bad", MemoryError)]
    assert {sample.key for sample in samples} == {"good"}
    with pytest.raises(MemoryError):
        list(interleave(steps, warm, timer, 1e9, never))


def test_a_contestant_leaves_the_time_that_is_reserved_for_others(timer):
    taken = {"slow": 0, "model": 0}

    def reserved_s(key):
        return 0.0 if key == "model" else 1.0 * max(0, FEWEST_SAMPLES - taken["model"])

    steps = {"slow": timer.step(3.0), "model": timer.step(1.0)}
    warm = {"slow": WarmUp((3.0,), settled=True), "model": WarmUp((1.0,), settled=True)}
    for sample in interleave(steps, warm, timer, timer.now() + 20, never, reserved_s=reserved_s):
        taken[sample.key] += 1
    assert taken["model"] >= FEWEST_SAMPLES
    assert taken["slow"] >= 2
    assert timer.now() <= 20 + 3.0


def summary(times, per_round=1):
    samples = [Sample("x", place // per_round, time) for place, time in enumerate(times)]
    return summarize(samples, WarmUp((1.0,), settled=True))


def test_a_quiet_result_has_no_doubts_and_keeps_every_sample():
    times = [1.0, 1.01, 0.99, 1.0, 1.0, 1.02, 0.98, 1.0, 1.0, 1.0, 7.0]
    found = summary(times)
    assert found.samples_s == tuple(times)
    assert found.median_s == 1.0
    assert not found.unstable


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ([1.0] * 4, "few samples"),
        ([1.0, 2.0] * 10, "wide interval"),
        ([1.0] * 10 + [1.2] * 10, "drift"),
    ],
)
def test_doubts_are_said(times, reason):
    assert reason in {doubt.reason for doubt in summary(times).doubts}


def test_bootstrap_interval_covers_the_true_median():
    covered = 0
    for seed in range(100):
        samples = np.random.default_rng(seed).lognormal(0.0, 0.2, 25)
        interval = median_interval(list(samples), list(range(25)))
        covered += interval.low <= 1.0 <= interval.high
    # 95 % of 100; 86 has a chance below 1e-3 if the interval is right
    assert covered >= 86


def test_samples_of_one_round_are_drawn_together():
    # ten rounds, each with its own level: ten numbers, not a hundred
    generator = np.random.default_rng(0)
    levels = 1 + 0.2 * generator.standard_normal(10)
    samples = [level + 1e-3 * generator.standard_normal() for level in levels for _ in range(10)]
    rounds = [number for number in range(10) for _ in range(10)]
    together = median_interval(samples, rounds)
    apart = median_interval(samples, list(range(100)))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_bootstrap_repeats_and_takes_uneven_rounds():
    samples, rounds = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [0, 0, 1, 2, 3, 4, 5]
    first, second = bootstrap_medians(samples, rounds), bootstrap_medians(samples, rounds)
    assert (first == second).all()
    assert first.min() >= 1
    assert first.max() <= 7
    with pytest.raises(ValueError, match="one round each"):
        bootstrap_medians([], [])


def test_relative_half_width():
    assert Interval(9.0, 11.0).relative_half_width(10.0) == pytest.approx(0.1)
    assert Interval(0.0, 1.0).relative_half_width(0.0) == float("inf")


def test_settling_needs_two_windows():
    assert not rolling_median_settled([1.0] * 5, 3, 0.01)
    assert rolling_median_settled([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.005], 3, 0.01)
    assert not rolling_median_settled([1.0] * 3 + [1.02] * 3, 3, 0.01)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later")
@pytest.mark.parametrize("settled", [False, True])
def test_a_settled_allocator_keeps_large_blocks_in_the_heap(settled):
    """Limits of glibc only rise, so that a process of its own must look: a mapped block goes back when it is freed."""
    program = f"""
import ctypes
import torch
from sola_profile.measure.allocator import settle_allocator

class Info(ctypes.Structure):
    # struct mallinfo2 of malloc.h: the fifth number is the bytes in mapped blocks
    _fields_ = [(name, ctypes.c_size_t) for name in "arena blocks small maps mapped a b c d e".split()]

look = ctypes.CDLL(None).mallinfo2
look.restype = Info
if {settled}:
    settle_allocator()
before = look().mapped
block = torch.ones(6 * 2**20)
print(look().mapped - before)
"""
    mapped = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    assert mapped == 0 if settled else mapped >= 24 * 2**20
