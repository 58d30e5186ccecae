"""Measuring on CUDA in a process of its own, with made-up processes: one that faults, one that dies, one that hangs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sola_profile import kernel_cuda_process
from sola_profile.kernel_cuda import ROUTE_BACKENDS, unmeasured
from sola_profile.kernel_cuda_process import End, Task, measure, tasks_of, work_through
from sola_profile.kernel_cuda_result import WITH, WITHOUT, FeatureRow, RouteRow, Row, Timing
from sola_profile.kernel_routes import implied_routes
from sola_profile.kernel_targets import AUTO, MODEL_TARGETS, OWN, RETENTION, feature_cases, route_cases, targets

ROOT = Path(__file__).parent.parent
# the one at place 3 is alone among its kernels
_CAUSAL = next(target for target in targets() if target.against == RETENTION)
TARGETS = (*targets()[:3], _CAUSAL, *targets()[3:5])
CASES, DTYPES = route_cases()[:3], ("bfloat16", "float16", "float32")
CEILINGS = {"device": "NVIDIA H200", "capability": "9.0", "copy_bytes_per_s": 4e12}


def pretend(sender, report, tasks, slow_until) -> None:
    """Row 1 is measured and loses the device, row 2, backends 1 and feature 0 kill their process, row 3 never ends."""
    sender.send(replace(report, **CEILINGS))
    for task in tasks:
        if task in (Task(2), Task(1, part="routes"), Task(0, part="features")):
            os._exit(11)
        if task == Task(3):
            time.sleep(60)
        name = {"routes": OWN, "features": WITH}.get(task.part, "ours")
        sender.send(replace(task.row(report), timings=(Timing(name, (1e-3,)),)))
        if task == Task(1):
            sender.send(End("the device is lost", sent=True))
            os.abort()


def never_ready(sender, report, tasks, slow_until) -> None:
    sys.exit(1)


def softmax_faults(sender, report, tasks, slow_until) -> None:
    """Our kernel of softmax attention in bfloat16 ends its process; cuDNN in float16 never comes back."""
    sender.send(replace(report, **CEILINGS))
    for task in tasks:
        row = task.row(report)
        case = row.case.kernel if task.part == "routes" else row.target.case
        if case.op == "softmax_attention" and case.dtype == "bfloat16":
            os._exit(11)
        if case.dtype == "float16":
            time.sleep(60)
        sender.send(replace(row, timings=(Timing("ours", (1e-3,)),)))


@pytest.fixture
def process(monkeypatch):
    def become(work, most_lost: int = 99) -> None:
        monkeypatch.setattr(kernel_cuda_process, "work_through", work)
        monkeypatch.setattr(kernel_cuda_process, "MOST_S", 2.0)
        monkeypatch.setattr(kernel_cuda_process, "MOST_LOST", most_lost)

    return become


@pytest.mark.slow
def test_a_row_that_ends_its_process_takes_no_other_along(process) -> None:
    process(pretend)
    reports = list(measure(TARGETS, (), CASES, feature_cases()[:2]))
    assert len(reports[0].rows) == len(TARGETS)
    last = reports[-1]
    assert last.device == "NVIDIA H200"
    assert [bool(row.timings and row.timings[0].samples_s) for row in last.rows] == [
        True,
        True,
        True,
        False,
        True,
        True,
    ]
    missing = [timing.missing for report in reports for row in report.rows for timing in row.timings if timing.missing]
    left_out = "left out, since retention bfloat16 has cost processes before"
    assert set(missing) == {"the process ended with code 11", "not done after 2 s", left_out}
    assert [row.timings[0].samples_s for row in last.routes] == [(1e-3,), (), (1e-3,)]
    lost = [(timing.name, timing.missing) for timing in last.routes[1].timings]
    assert lost == [(name, "the process ended with code 11") for name in ROUTE_BACKENDS]
    lost = [(timing.name, timing.missing) for timing in last.features[0].timings]
    assert lost == [(name, "the process ended with code 11") for name in (WITH, WITHOUT)]
    assert last.features[1].timings[0].samples_s == (1e-3,)


@pytest.mark.slow
def test_rows_whose_kernels_cost_processes_are_left_out(process) -> None:
    process(softmax_faults, most_lost=2)
    chosen = [target for target in targets() if target.case.op in ("wkv", "softmax_attention")]
    cases = [case for case in route_cases() if case.dim == 64]
    reports = list(measure(tuple(chosen), (), tuple(cases)))
    last = reports[-1]
    for row in last.rows:
        assert (row.timings[0].missing == "") == (row.target.case.op == "wkv")
    # each loses one process and then another; one that hangs is left at once
    own = [row.timings[0].missing for row in last.rows if row.target.case.op == "softmax_attention"]
    left_out = "left out, since softmax_attention bfloat16 has cost processes before"
    assert own == ["the process ended with code 11"] * 2 + [left_out] * (len(own) - 2)
    found = {dtype: [row.timings[0].missing for row in last.routes if row.case.dtype == dtype] for dtype in DTYPES}
    assert found["bfloat16"] == [left_out] * 6
    behind = "left out, since softmax_attention float16 backends has cost processes before"
    assert found["float16"] == ["not done after 2 s", *[behind] * 5]
    assert found["float32"] == [""] * 4


def test_no_device_is_an_error_with_a_reason(process) -> None:
    process(never_ready)
    with pytest.raises(RuntimeError, match="the device could not be measured: the process ended with code 1"):
        list(measure(TARGETS, ()))


def test_the_list_is_measured_before_what_runs_by_it_and_slow_routes_last() -> None:
    report = unmeasured("x", targets(), MODEL_TARGETS, route_cases(), feature_cases())
    tasks = tasks_of(report)
    features = [task for task in tasks if task.part == "features"]
    assert [task.row(report) for task in features] == [FeatureRow(case) for case in feature_cases()]
    assert tasks[tasks.index(features[-1]) + 1].part == "routes"
    tasks = [task for task in tasks if task not in features]
    begin = next(i for i, task in enumerate(tasks) if task.part == "routes")
    end = begin + len(route_cases())
    assert tasks[begin:end] == [Task(place, part="routes") for place in range(len(route_cases()))]
    before, after = ([report.rows[task.place].target for task in part] for part in (tasks[:begin], tasks[end:]))
    assert before == [target for target in targets() if target.backend != AUTO]
    by_list = [target for target in targets() if target.backend == AUTO]
    assert after == [*by_list, *MODEL_TARGETS, *sorted(before, key=lambda target: target.against != RETENTION)]
    assert [task.slow for task in tasks[end:]] == [False] * (len(after) - len(before)) + [True] * len(before)


@pytest.fixture
def in_process(monkeypatch):
    """``work_through`` here, on a made-up device: what it sends, and its end of the pipe."""
    sent: list[object] = []

    def measure_ceilings(_):
        return replace(unmeasured("", (), ()), **CEILINGS)

    monkeypatch.setattr(kernel_cuda_process, "Clock", lambda _: None)
    monkeypatch.setattr(kernel_cuda_process, "measure_ceilings", measure_ceilings)
    monkeypatch.setattr(kernel_cuda_process, "follow", lambda _: None)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    return sent, SimpleNamespace(send=sent.append)


def test_the_process_goes_on_after_an_error_and_ends_with_the_device(monkeypatch, in_process) -> None:
    sent, sender = in_process

    def lose() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    def measure_target(target, clock, copy_bytes_per_s) -> Row:
        if len(sent) == 1:
            raise MemoryError("too large\nmore")
        if len(sent) == 3:
            monkeypatch.setattr(torch.cuda, "synchronize", lose)
        return Row(target, (Timing("ours", (1e-3,)),))

    monkeypatch.setattr(kernel_cuda_process, "measure_target", measure_target)
    report = unmeasured("x", TARGETS, ())
    work_through(sender, report, tasks_of(report), 0.0)
    assert sent[0] == replace(report, **CEILINGS)
    assert [row.timings[0].missing for row in sent[1:-1]] == ["too large", "", ""]
    assert sent[-1] == End("the device is lost: CUDA error: unspecified launch failure", sent=True)


def test_another_process_runs_by_the_list_that_one_before_it_measured(monkeypatch, in_process) -> None:
    sent, sender = in_process
    followed = []
    monkeypatch.setattr(kernel_cuda_process, "follow", followed.append)
    monkeypatch.setattr(kernel_cuda_process, "measure_target", lambda target, *_: Row(target))
    whole = next(target for target in targets() if target.backend == AUTO)
    report = replace(unmeasured("x", (whole,), (), CASES[:1]), **CEILINGS)
    report = report.with_row(0, RouteRow(CASES[0], (Timing(OWN, (2e-3,)), Timing("flash", (1e-3,), 1e-3))))
    work_through(sender, report, [Task(0)], 0.0)
    assert [route.backend for route in implied_routes(followed[0])] == ["flash"]
    assert sent == [report, Row(whole)]


_STOPPED = """
import sys
from pathlib import Path
import test_kernel_cuda_process as made_up
from sola_profile import kernel_cuda_process
from sola_profile.commands import kernels_cuda
if __name__ == "__main__":
    import torch
    torch.cuda.is_available = lambda: True
    kernel_cuda_process.work_through = made_up.pretend
    kernel_cuda_process.MOST_LOST = 99
    kernels_cuda.run(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_what_is_stopped_leaves_a_whole_report(tmp_path) -> None:
    """``timeout`` ends it by SIGTERM while a row hangs: the rows before it are there."""
    script = tmp_path / "stopped.py"
    script.write_text(_STOPPED)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    run = subprocess.Popen([sys.executable, script, tmp_path], env=environment, stdout=subprocess.PIPE, text=True)
    page = tmp_path / "kernels-h200.json"
    for line in run.stdout:
        if "3 of" in line:
            break
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=300)
    rows = json.loads(page.read_text())["rows"]
    assert len(rows) == len(targets()) + len(MODEL_TARGETS)
    assert [bool(row["timings"]) for row in rows[:4]] == [True, True, True, False]
    assert page.with_suffix(".md").read_text().count("1.000 ms") == 2
    assert not list(tmp_path.glob(".kernels*"))
