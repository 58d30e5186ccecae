"""Measuring on CUDA in a process of its own, with made-up processes: one that faults, one that dies, one that hangs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sola_profile import kernel_cuda_process
from sola_profile.kernel_cuda import Row, Timing, unmeasured
from sola_profile.kernel_cuda_process import DEVICE_LOST, Task, measure, tasks_of, work_through
from sola_profile.kernel_targets import MODEL_TARGETS, RETENTION, targets

ROOT = Path(__file__).parent.parent
TARGETS = targets()[:6]
CEILINGS = replace(unmeasured("NVIDIA H200", (), ()), copy_bytes_per_s=4e12)


def pretend(sender, ceilings, rows, tasks) -> None:
    """Row 1 is measured and loses the device, row 2 kills its process, row 3 never ends."""
    sender.send(ceilings or CEILINGS)
    for task in tasks:
        if task.place == 2 and not task.slow:
            os._exit(11)
        if task.place == 3 and not task.slow:
            time.sleep(60)
        sender.send(replace(rows[task.place], timings=(Timing("ours", (1e-3,)),)))
        if task.place == 1 and not task.slow:
            sys.exit(DEVICE_LOST)


def never_ready(sender, ceilings, rows, tasks) -> None:
    sys.exit(1)


@pytest.fixture
def process(monkeypatch):
    def become(work, most_s: float = 2.0) -> None:
        monkeypatch.setattr(kernel_cuda_process, "work_through", work)
        monkeypatch.setattr(kernel_cuda_process, "MOST_S", most_s)

    return become


@pytest.mark.slow
def test_a_row_that_ends_its_process_takes_no_other_along(process) -> None:
    process(pretend)
    reports = list(measure(TARGETS, ()))
    assert len(reports[0].rows) == len(TARGETS)
    rows = reports[-1].rows
    assert reports[-1].device == "NVIDIA H200"
    assert [bool(row.timings and row.timings[0].samples_s) for row in rows] == [True, True, True, True, True, True]
    missing = [timing.missing for report in reports for row in report.rows for timing in row.timings if timing.missing]
    assert set(missing) == {"the process ended with code 11", "not done after 2 s"}


def test_no_device_is_an_error_with_a_reason(process) -> None:
    process(never_ready)
    with pytest.raises(RuntimeError, match="the device could not be measured: the process ended with code 1"):
        list(measure(TARGETS, ()))


def test_slow_routes_come_last_and_those_of_targets_first() -> None:
    rows = unmeasured("x", targets(), MODEL_TARGETS).rows
    tasks = tasks_of(rows)
    assert tasks[: len(rows)] == [Task(place, slow=False) for place in range(len(rows))]
    slow = [rows[task.place].target for task in tasks[len(rows) :]]
    assert [target.against == RETENTION for target in slow] == [True] * 6 + [False] * (len(targets()) - 6)


def test_the_process_goes_on_after_an_error_and_ends_with_the_device(monkeypatch) -> None:
    sent, lost = [], []

    def measure_target(target, clock, copy_bytes_per_s) -> Row:
        if len(sent) == 1:
            raise MemoryError("too large\nmore")
        if len(sent) == 3:
            lost.append(True)
        return Row(target, (Timing("ours", (1e-3,)),))

    def synchronize() -> None:
        if lost:
            raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(kernel_cuda_process, "Clock", object)
    monkeypatch.setattr(kernel_cuda_process, "measure_ceilings", lambda _: CEILINGS)
    monkeypatch.setattr(kernel_cuda_process, "measure_target", measure_target)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    sender = type("Sender", (), {"send": sent.append})
    rows = unmeasured("x", TARGETS, ()).rows
    with pytest.raises(SystemExit) as left:
        work_through(sender, None, rows, tasks_of(rows))
    assert left.value.code == DEVICE_LOST
    assert sent[0] == CEILINGS
    assert [row.timings[0].missing for row in sent[1:]] == ["too large", "", ""]


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
    run.communicate(timeout=30)
    rows = json.loads(page.read_text())["rows"]
    assert len(rows) == len(targets()) + len(MODEL_TARGETS)
    assert [bool(row["timings"]) for row in rows[:4]] == [True, True, True, False]
    assert page.with_suffix(".md").read_text().count("1.000 ms") == 2
    assert not list(tmp_path.glob(".kernels*"))
