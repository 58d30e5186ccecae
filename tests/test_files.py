"""Results are written whole or not at all, through links, and into devices and pipes."""

import json
import os
import threading
from pathlib import Path

import pytest

from sola_profile.files import replace_text

ONE = ("--model", "sola_t", "--res", "64", "--no-measure", "--no-report", "--no-twins")


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "x.json"
    target.write_text("old")

    def fail(self, path):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        replace_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_results_have_the_mode_that_the_umask_leaves(tmp_path):
    old = os.umask(0o077)
    try:
        replace_text(tmp_path / "x.json", "new")
    finally:
        os.umask(old)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o600


def test_a_link_stays_a_link(sola_profile, tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "x.json", tmp_path / "x.json"
    target.write_text("old")
    link.symlink_to(target)
    assert sola_profile(*ONE, "--json", str(link))[0] == 0
    assert link.is_symlink()
    assert target.read_text().startswith("{")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "arguments", [(*ONE, "--json"), ("trace", "--model", "sola_t", "--res", "32", "--out")], ids=["json", "trace"]
)
def test_a_pipe_is_written_to_and_stays_one(sola_profile, tmp_path, arguments):
    """What replaces a pipe would replace /dev/null just so, where the user may."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert sola_profile(*arguments, str(pipe))[0] == 0
    assert pipe.is_fifo()
    reader.join(timeout=60)
    assert json.loads(read[0])
    assert list(tmp_path.iterdir()) == [pipe]
