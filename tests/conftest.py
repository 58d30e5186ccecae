"""What tests of more than one file use. Nothing is imported here that a machine with torch and pytest alone lacks."""

import os
import sys

import pytest


@pytest.fixture
def one_thread():
    """One thread of PyTorch's operators, with which a run gives the same bits in every process."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def plain_width(monkeypatch):
    """Output as a pipe gets it: a process of pytest-xdist is told the width of the terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


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
