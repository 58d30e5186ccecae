"""Measured time per kind of layer covers the whole forward pass and leaves the model as it was."""

import pytest

from sola_profile.case import Resolution, Settings
from sola_profile.measure.kind_times import MOST_RUNS, KindTimes, time_kinds
from sola_profile.measure.module_times import time_modules
from sola_profile.pieces import KINDS
from sola_profile.workload import build, cpu_threads
from sola_vision import BackboneSpec, ops

TINY = BackboneSpec("tiny", (32, 32, 64, 64), "L|L|S|S", bridges=("1.1->3.1",))


def test_every_kind_that_is_there_gets_time():
    with cpu_threads(1):
        found = time_kinds(build(TINY, Settings()), Resolution(64, 64), limit_s=1e9)
    assert len(found.runs) == MOST_RUNS
    for run in found.runs:
        assert set(run) == set(KINDS)
        assert min(run.values()) > 0
    assert sum(found.shares.values()) == pytest.approx(1)


def test_kinds_that_are_not_there_get_none_and_the_hooks_are_gone():
    spec = TINY.with_pattern("L|L|L|L")
    with cpu_threads(1):
        workload = build(spec, Settings())
        found = time_kinds(workload, Resolution(64, 64), limit_s=0.0)
    assert len(found.runs) == 1
    assert found.shares["softmax"] == found.shares["bridge"] == 0
    assert not any(module._forward_pre_hooks for module in workload.model.modules())


@pytest.mark.parametrize("depth", [1, 5, 9])
def test_modules_are_timed_as_they_run(depth, monkeypatch):
    """A hook on a map of a channel mix would make three products of its operator."""
    calls, operator = [], ops.channel_mix
    monkeypatch.setattr(ops, "channel_mix", lambda *args: calls.append(None) or operator(*args))
    with cpu_threads(1):
        workload = build(TINY, Settings())
        times = time_modules(workload.model, workload.step(workload.image(Resolution(64, 64))), depth, runs=1)
    assert len(calls) == 4
    assert all(module._forward_hooks == {} for module in workload.model.modules())
    mixes = {path for path in times if path.endswith("channel_mix")}
    assert len(mixes) == (4 if depth >= 5 else 0)
    assert all(times[path] > 0 for path in mixes)


def test_one_disturbed_run_does_not_move_the_shares():
    calm = dict.fromkeys(KINDS, 1.0)
    disturbed = {**calm, "head": 100.0}
    assert KindTimes((disturbed, calm, calm)).shares["head"] == pytest.approx(1 / len(KINDS))
