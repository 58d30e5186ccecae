"""The lock on a folder that a run writes to: who is refused, and that no dead process holds it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from training import TINY

from sola_vision.train import Output, train
from sola_vision.train.lock import only_writer

HOLDER = """
import os, sys, time
from pathlib import Path
from sola_vision.train.lock import only_writer

with only_writer(Path(sys.argv[1])):
    if os.fork() == 0:
        # a worker that has begun, and outlives its parent
        print("held", flush=True)
        sys.stdin.read()
        os._exit(0)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_has_left(tmp_path):
    with only_writer(tmp_path):
        with (
            pytest.raises(ValueError, match=f"^out: another process is writing to {tmp_path}; expected"),
            only_writer(tmp_path),
        ):
            pass
        # the refused one has not let go of the first one's lock
        with pytest.raises(ValueError, match="another process"), only_writer(tmp_path):
            pass
    with only_writer(tmp_path):
        pass


def test_a_killed_process_leaves_no_lock_though_its_child_lives(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process"), only_writer(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        with only_writer(tmp_path):
            pass


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with only_writer(tmp_path), only_writer(tmp_path):
        pass


def test_a_lock_that_can_not_be_opened_is_named(tmp_path):
    with (
        pytest.raises(ValueError, match=r"^out: can't write to .*/none/.lock: No such file"),
        only_writer(tmp_path / "none"),
    ):
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_is_refused_where_another_one_writes(tmp_path, resume):
    config = replace(TINY, steps=1, output=Output(tmp_path))
    with only_writer(tmp_path), pytest.raises(ValueError, match="another process is writing"):
        train(config, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert train(config, resume=resume).steps == 1
    # it holds none when it has ended
    assert train(config, resume=True).steps == 1
