"""``python -m sola_vision.train``: what it prints, and what it says when something is wrong."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from sola_vision.train.checkpoint import NAME
from sola_vision.train.command import command, main
from sola_vision.train.progress import _Lines

pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(**changes):
    given = {"model": "proxy_wkv", "pattern": "L|L|LSLLLL|L", "data": "task:count", "res": 16, "steps": 2, "batch": 2}
    given.update({"eval-size": 8, "threads": 1, **changes})
    return [word for key, value in given.items() if value is not None for word in (f"--{key}", str(value))]


def test_the_command_prints_one_line_and_keeps_progress_apart(capsys, tmp_path):
    out = tmp_path / "run"
    command.main([*arguments(mixer="L=decay", out=out), "--json"], standalone_mode=False)
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert record["total"] == 8
    assert said.err == "".join(f"step {step} of 2, loss {loss}\n" for step, loss in _losses(said.err))
    command.main([*arguments(mixer="L=decay", out=out), "--resume"], standalone_mode=False)
    assert capsys.readouterr().out.startswith(f"accuracy {record['accuracy']:.2%} ({record['correct']} of 8), loss ")


def _losses(text):
    return [(step, line.rpartition(" ")[2]) for step, line in enumerate(text.splitlines(), start=1)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "proxy_wvk"}, "--model: nothing is named 'proxy_wvk'; did you mean 'proxy_wkv'"),
        ({"data": "count"}, "--data: there is no folder 'count'; did you mean 'task:count'"),
        ({"mixer": "decay"}, "--mixer: expected a letter and a mixer such as L=decay, got 'decay'"),
        ({"pattern": "L|L|LLX|L"}, "pattern"),
        ({"seed": 2**64}, f"seed: expected a whole number from 0 to 2^48 - 1, got {2**64}"),
        ({"lr": -1}, "lr: expected a number of more than 0, got -1"),
        ({"out": "/dev/null/run"}, "out: can't write to /dev/null/run: Not a directory"),
        ({"lrr": 1}, "No such option '--lrr'"),
    ],
)
def test_the_command_names_the_option_and_the_nearest(changes, words):
    done = CliRunner().invoke(command, arguments(**changes))
    assert done.exit_code == 2
    assert words in done.output


def test_ctrl_c_finishes_the_step(tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(_Lines, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(sys, "argv", ["train", *arguments(out=tmp_path, steps=9)])
    with pytest.raises(SystemExit, match="130"):
        main()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"interrupted; --resume goes on from the last checkpoint in {tmp_path}\n")
    assert torch.load(tmp_path / NAME, weights_only=True)["step"] == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_worker_that_ctrl_c_ended_is_the_interrupt(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 1.")

    monkeypatch.setattr("sola_vision.train.loop.train", fail)
    monkeypatch.setattr(sys, "argv", ["train", *arguments(out=tmp_path)])
    with pytest.raises(SystemExit, match="130"):
        main()
    # nothing was kept
    assert capsys.readouterr().err == "interrupted\n"


def test_resuming_without_a_checkpoint_begins_and_says_so(tmp_path, capsys):
    for _ in range(2):
        command.main([*arguments(out=tmp_path), "--resume"], standalone_mode=False)
    assert capsys.readouterr().err.count(f"{tmp_path} holds no checkpoint.pt: the run starts from step 0\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA"), "out of memory: a smaller --batch or --res needs less"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: a smaller --batch"),
        (OSError(28, "No space left on device", "run/checkpoint.pt"), "[Errno 28] No space left on device: 'run/check"),
        (FloatingPointError("the loss is nan at step 3"), "the loss is nan at step 3"),
    ],
)
def test_a_run_that_fails_says_why_in_a_line(error, words, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("sola_vision.train.loop.train", fail)
    done = CliRunner().invoke(command, arguments())
    assert (done.exit_code, done.output.startswith(f"Error: {words}")) == (1, True)


def test_help_needs_no_torch():
    code = "import sys, sola_vision.train.command as c; c.command.main(['--help'], standalone_mode=False)"
    code += "; assert not {'torch', 'rich', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
