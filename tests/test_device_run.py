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
        command = [sys.executable, "-m", "pytest", "-p", "device_run", "-p", "no:cacheprovider", "-v", *arguments]
        return subprocess.run(
            [*command, "test_made_up.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return call


def test_what_breaks_takes_no_other_along(run) -> None:
    done = run("--most-s", "1")
    out = done.stdout
    assert done.returncode == 1, out + done.stderr
    for name in ("first", "behind", "last"):
        assert f"test_{name} PASSED" in out
    assert "assert (1 + 1) == 3" in out.split("test_breaks")[0]
    assert "GIVEN UP test_made_up.py::test_breaks: the device is lost, CUDA error: an illegal memory access" in out
    assert "GIVEN UP test_made_up.py::test_never_ends: not done after 1 s" in out
    assert out.index("test_behind PASSED") < out.index("test_last PASSED")


def test_shares_are_all_tests_once(run) -> None:
    halves = [run("--share", f"{part}/2", "-k", "not never", "--collect-only", "-qq").stdout for part in (1, 2)]
    names = [[line for line in half.splitlines() if "::" in line] for half in halves]
    assert len(names[0]) + len(names[1]) == len({*names[0], *names[1]}) == 5


def test_nothing_left_behind_the_last_test_is_no_failure(run) -> None:
    assert run("-k", "first", "--after", "test_made_up.py::test_first").returncode == 0
