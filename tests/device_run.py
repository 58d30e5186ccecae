"""A plugin of pytest for a GPU that is lent for minutes: what is known is printed at once, and a test takes no other along.

``python -m pytest -p device_run -p no:terminal -o addopts= --share 1/4 tests/test_cuda.py``, with this folder on
PYTHONPATH.

Every result is a line, written at once and whole, so that several processes can share a log. A kernel that faults leaves
a device on which every later call fails, and one that never ends can't be interrupted: then the process starts anew
behind the test. Processes that take a share each keep the order of the tests, so that all of them begin with what
matters most.
"""

from __future__ import annotations

import os
import sys
import threading

import pytest

MOST_RESTARTS = 20
_FEWEST_S = 1.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("device_run")
    group.addoption("--share", default="1/1", help="I/N: every N-th test, beginning with the I-th")
    group.addoption("--most-s", type=float, default=60.0, help="after so many seconds a test is given up")
    group.addoption("--after", default="", help="begin behind this test")
    group.addoption("--restarts", type=int, default=0, help="how often the process has started anew")
    group.addoption("--counted", default="0,0,0", help="passed, failed and skipped by processes before this one")


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
    """One process: its share of the tests, what came of them, and a clock for each."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        counts = map(int, config.getoption("--counted").split(","))
        self.counted = dict(zip(("passed", "failed", "skipped"), counts, strict=True))
        self.clock: threading.Timer | None = None
        # capturing leaves it alone, and it is the log's end even when others write there
        self.log = os.dup(1)

    def say(self, text: str) -> None:
        """Lines of the log."""
        os.write(self.log, f"{text}\n".encode())

    def start_anew(self, test: str, why: str) -> None:
        """Begin again in a new process, behind a test."""
        restarts = self.config.getoption("--restarts") + 1
        self.counted["failed"] += 1
        self.say(f"GIVEN UP {test}: {why}")
        if restarts > MOST_RESTARTS:
            os._exit(1)
        counted = ",".join(map(str, self.counted.values()))
        state = [f"--after={test}", f"--restarts={restarts}", f"--counted={counted}"]
        os.dup2(self.log, 1)
        os.dup2(self.log, 2)
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *self.config.invocation_params.args, *state])

    @pytest.hookimpl(trylast=True)  # behind -k
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        part, parts = map(int, self.config.getoption("--share").split("/"))
        items[:] = items[part - 1 :: parts]
        names = [item.nodeid for item in items]
        after = self.config.getoption("--after")
        if after in names:
            del items[: names.index(after) + 1]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counted["failed"] += 1
            self.say(f"FAILED {report.nodeid} (collection)\n{report.longreprtext}")

    def pytest_internalerror(self, excrepr: object) -> None:
        self.say(f"FAILED pytest itself\n{excrepr}")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        seconds = max(_FEWEST_S, self.config.getoption("--most-s"))
        self.clock = threading.Timer(seconds, self.start_anew, (nodeid, f"not done after {seconds:g} s"))
        self.clock.daemon = True
        self.clock.start()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed and report.when != "call":
            return
        self.counted[report.outcome] += 1
        line = f"{report.outcome.upper()} {report.nodeid} {report.duration:.2f} s"
        if report.failed:
            line += f" ({report.when})\n" + "\n".join(report.longreprtext.splitlines()[-25:])
        elif isinstance(report.longrepr, tuple):
            line += f": {report.longrepr[2]}"
        self.say(line)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.clock is not None:
            self.clock.cancel()
        why = lost()
        if why:
            self.start_anew(nodeid, f"the device is lost, {why}")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        counts = ", ".join(f"{count} {what}" for what, count in self.counted.items())
        self.say(f"SHARE {self.config.getoption('--share')}: {counts}")
        # nothing left to run is no failure
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = int(self.counted["failed"] > 0)
