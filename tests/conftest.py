"""What tests of more than one file use. Nothing is imported here that a machine with torch and pytest alone lacks."""

import os
import sys

import pytest
import torch

try:
    from hypothesis import HealthCheck, settings
except ImportError:
    pass
else:
    # the same examples in every run and on every machine, however long one takes
    settings.register_profile(
        "steady", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("steady")

# what makes rich and click print otherwise than into a pipe; a process of pytest-xdist has the width of the terminal
TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random numbers that nobody has seeded are the same whichever tests ran before, those of fixtures too."""
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter) -> None:
    """Where the CUDA kernels ran as PTX (`make ptx`): those that no test has run."""
    if os.environ.get("SOLA_PTX"):
        import emulated

        names = emulated.library().never_run()
        terminalreporter.section(f"{len(names)} kernels were not run")
        terminalreporter.write("".join(f"{name}\n" for name in sorted(names)))


@pytest.fixture
def one_thread():
    """One thread of PyTorch's operators, with which a run gives the same bits in every process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def plain_output(monkeypatch):
    """Output as a pipe gets it, in this process and in those that it starts."""
    for name in TERMINAL:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sola_profile(monkeypatch, capsys, tmp_path):
    """``sola-profile`` as it is typed: exit code, standard output and standard error of its arguments."""
    # ceilings that the user keeps would show in every profile
    if "SOLA_MACHINES" not in os.environ:
        monkeypatch.setenv("SOLA_MACHINES", str(tmp_path / "machines"))

    def call(*arguments):
        from sola_profile.cli import main

        monkeypatch.setattr(sys, "argv", ["sola-profile", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return call
