"""The plugin for a lent GPU, on made-up tests: one breaks the device, one never ends, and the others still run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# stands in for torch: a device that is lost once somebody has broken it
_TORCH = """
from types import SimpleNamespace
broken = []
def synchronize():
    if broken:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nmore")
cuda = SimpleNamespace(is_available=lambda: True, synchronize=synchronize)
"""
_TESTS = """
import ctypes, torch
def test_first(): pass
def test_wrong(): assert 1 + 1 == 3
def test_breaks(): torch.broken.append(1)
def test_behind(): torch.cuda.synchronize()
def test_never_ends(): ctypes.CDLL(None).sleep(60)
def test_last(): torch.cuda.synchronize()
"""


@pytest.fixture
def run(tmp_path: Path):
    (tmp_path / "torch.py").write_text(_TORCH)
    (tmp_path / "test_made_up.py").write_text(_TESTS)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{HERE}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-m", "pytest", "-p", "device_run", "-p", "no:terminal", *arguments]
        return subprocess.run(
            [*command, "test_made_up.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return call


def test_what_breaks_takes_no_other_along(run) -> None:
    # what does nothing takes longer only where a machine is all but standing still
    done = run("--most-s", "4")
    out = done.stdout
    assert done.returncode == 1, out + done.stderr
    for name in ("first", "behind", "last"):
        assert f"PASSED test_made_up.py::test_{name} " in out
    assert "assert (1 + 1) == 3" in out.split("test_breaks")[0]
    assert "GIVEN UP test_made_up.py::test_breaks: the device is lost, CUDA error: an illegal memory access" in out
    assert "GIVEN UP test_made_up.py::test_never_ends: not done after 4 s" in out
    # what broke the device had passed
    assert out.splitlines()[-1] == "SHARE 1/1: 4 passed, 3 failed, 0 skipped"


def test_shares_are_all_tests_once(run) -> None:
    halves = [run("--share", f"{part}/2", "-k", "first or wrong or behind").stdout for part in (1, 2)]
    assert [half.splitlines()[-1] for half in halves] == [
        "SHARE 1/2: 2 passed, 0 failed, 0 skipped",
        "SHARE 2/2: 0 passed, 1 failed, 0 skipped",
    ]


def test_a_file_that_does_not_import_is_a_failure_with_a_reason(run, tmp_path) -> None:
    (tmp_path / "test_made_up.py").write_text("import no_such_module")
    done = run()
    assert done.returncode != 0
    assert "No module named 'no_such_module'" in done.stdout


def test_nothing_left_behind_the_last_test_is_no_failure(run) -> None:
    assert run("-k", "first", "--after", "test_made_up.py::test_first").returncode == 0
