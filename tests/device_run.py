"""A plugin of pytest for a GPU that is lent for minutes: what is known is printed at once, and a test takes no other along.

``python -m pytest -p device_run -v --share 1/4 tests/test_cuda.py``, with this folder on PYTHONPATH.

Failures are printed as they happen. A kernel that faults leaves a device on which every later call fails, and one that
never ends can't be interrupted: then the process starts anew behind the test. Processes that take a share each keep
the order of the tests, so that all of them begin with what matters most.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import pytest

MOST_RESTARTS = 20
_FEWEST_S = 1.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("device_run")
    group.addoption("--share", default="1/1", help="I/N: every N-th test, beginning with the I-th")
    group.addoption("--most-s", type=float, default=60.0, help="after so many seconds a test is given up")
    group.addoption("--after", default="", help="begin behind this test")
    group.addoption("--restarts", type=int, default=0, help="how often the process has started anew")
    group.addoption("--failures", type=int, default=0, help="of processes before this one")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Run(config), "device_run_of_session")


def lost() -> str:
    """Why the device answers no more, or nothing."""
    import torch

    if not torch.cuda.is_available():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


class Run:
    """One process: its share of the tests, what failed of them, and a clock for each."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.failures: int = config.getoption("--failures")
        self.clock: threading.Timer | None = None

    def say(self, text: str) -> None:
        """A line of the log, without the wait for a buffer."""
        print(f"\n{text}", file=sys.__stdout__, flush=True)

    def start_anew(self, test: str, why: str) -> None:
        """This process becomes another one that begins behind a test."""
        restarts = self.config.getoption("--restarts") + 1
        self.say(f"GIVEN UP {test}: {why}")
        capture: Any = self.config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.stop_global_capturing()
        if restarts > MOST_RESTARTS:
            os._exit(1)
        state = [f"--after={test}", f"--restarts={restarts}", f"--failures={self.failures + 1}"]
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *self.config.invocation_params.args, *state])

    @pytest.hookimpl(trylast=True)  # behind -k
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        part, parts = map(int, self.config.getoption("--share").split("/"))
        items[:] = items[part - 1 :: parts]
        names = [item.nodeid for item in items]
        after = self.config.getoption("--after")
        if after in names:
            del items[: names.index(after) + 1]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        seconds = max(_FEWEST_S, self.config.getoption("--most-s"))
        self.clock = threading.Timer(seconds, self.start_anew, (nodeid, f"not done after {seconds:g} s"))
        self.clock.daemon = True
        self.clock.start()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.failed:
            return
        self.failures += report.when == "call"
        self.say(f"FAILED {report.nodeid} ({report.when})\n" + "\n".join(report.longreprtext.splitlines()[-25:]))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.clock is not None:
            self.clock.cancel()
        why = lost()
        if why:
            self.start_anew(nodeid, f"the device is lost, {why}")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # nothing left to run is no failure
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = int(self.failures > 0)
