"""Where a command's results go: standard output, a report folder, files. Checked before anything is measured."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sola_profile.report import FORMATS, render

if TYPE_CHECKING:
    from rich.console import Console

    from sola_profile.report.svg import Renderer
    from sola_profile.result import Profile
    from sola_profile.sweep import Sweep

STDOUT = "-"
RESULT = "result.json"
CHECKPOINT_EVERY_S = 10.0
# what is not a terminal has no width of its own; remarks and sentences wrap here
PIPE_WIDTH = 120

# key of the typed arguments in click's context
ARGUMENTS = "sola_profile.arguments"


def written_command() -> str:
    """The command as it was typed, for the report."""
    arguments = click.get_current_context().find_root().meta[ARGUMENTS]
    return " ".join(["sola-profile", *map(shlex.quote, arguments)])


@dataclass
class Targets:
    """``folder``: of the report, None without one. ``files``: format → path, or ``-`` for standard output."""

    folder: Path | None
    files: Mapping[str, str]
    last_checkpoint: float = float("-inf")

    def check(self) -> None:
        """Raise ``click.UsageError`` for a place that can't be written; makes the report folder."""
        to_stdout = [f"--{name}" for name, target in self.files.items() if target == STDOUT]
        if len(to_stdout) > 1:
            raise click.UsageError(f"only one of {' and '.join(to_stdout)} can go to standard output")
        if self.folder is not None:
            _check_writable(self.folder, "--out", make=True)
        for name, target in self.files.items():
            if target != STDOUT:
                if Path(target).is_dir():
                    raise click.BadParameter(f"{target} is a folder, not a file", param_hint=f"--{name}")
                _check_writable(Path(target).parent, f"--{name}", make=False)

    def checkpoint(self, sweep: Sweep) -> None:
        """Write the raw results of a running sweep to the report folder, now and then."""
        now = time.monotonic()
        if self.folder is None or not sweep.measuring or now - self.last_checkpoint < CHECKPOINT_EVERY_S:
            return
        _replace(self.folder / RESULT, render("json", sweep.profile()))
        self.last_checkpoint = time.monotonic()

    def write(self, profile: Profile, renderer: Renderer | None) -> None:
        """Everything that was asked for: raw results first, the terminal last."""
        texts = {name: render(name, profile) for name in FORMATS if name in self.files}
        if self.folder is not None:
            _replace(self.folder / RESULT, texts.get("json") or render("json", profile))
        for name, text in texts.items():
            if self.files[name] == STDOUT:
                click.echo(text, nl=False)
            else:
                _replace(Path(self.files[name]), text)
        if self.folder is not None and renderer is not None:
            from sola_profile.report.markdown import write_markdown

            problem = write_markdown(profile, self.folder, renderer, [RESULT])
            if problem:
                click.echo(f"the report has no charts: {problem}", err=True)
        from sola_profile.report.terminal import print_profile

        console = _console(to_stderr=STDOUT in self.files.values())
        print_profile(profile, console)
        if self.folder is not None:
            console.print(f"Report: {self.folder}", highlight=False, soft_wrap=True)


def _console(*, to_stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    wide = stream.isatty() or "COLUMNS" in os.environ
    return Console(file=stream, width=None if wide else PIPE_WIDTH, highlight=False)


def _check_writable(folder: Path, option: str, *, make: bool) -> None:
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        # asking for the permission bits would be wrong for root and on network drives
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise click.BadParameter(f"can't write to {folder}: {error.strerror}", param_hint=option) from error


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
