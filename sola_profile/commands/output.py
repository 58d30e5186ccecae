"""Where a command's results go: standard output, a report folder, files. Checked before anything is measured."""

from __future__ import annotations

import errno
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sola_profile.files import is_stream, replace_text
from sola_vision.files import followed

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

STDOUT = "-"
# what reports have by these names, in any command
REPORT_FILES = ("README.md", "result.json", "time.json")
CHECKPOINT_EVERY_S = 10.0
# what is not a terminal has no width of its own; remarks and sentences wrap here
PIPE_WIDTH = 120

# they force an instruction set, a GEMM backend or a softmax kernel, and a report must say so
CHOOSING_VARIABLES = ("SOLA_ISA", "SOLA_BF16", "SOLA_SOFTMAX_BACKEND", "SOLA_SOFTMAX_ROUTES", "SOLA_CUDA_WITHOUT")

# key of the typed arguments in click's context
ARGUMENTS = "sola_profile.arguments"


def written_command() -> str:
    """The command as it was typed, for the report, with the variables that choose what runs."""
    arguments = click.get_current_context().find_root().meta[ARGUMENTS]
    chosen = [f"{name}={shlex.quote(os.environ[name])}" for name in CHOOSING_VARIABLES if os.environ.get(name)]
    return " ".join([*chosen, "sola-profile", *map(shlex.quote, arguments)])


def checked(read: Callable[[], T], option: str | None = None) -> T:
    """What ``read`` returns; its ``ValueError`` becomes bad use of the option."""
    try:
        return read()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) if option else click.UsageError(str(error)) from error


def check_device(name: str) -> None:
    """Raise ``ValueError`` unless there is such a device; torch isn't loaded to learn of the CPU."""
    if name == "cpu":
        return
    from sola_profile.machine import check_device as check

    check(name)


def checked_budget(seconds: float) -> float:
    """``--budget``, which is more than 0 seconds, and finite, as JSON has no other numbers."""
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"expected more than 0 seconds, got {seconds:g}", param_hint="--budget")
    return seconds


def check_positive(number: float, option: str) -> None:
    """Raise bad use unless an option's number is more than 0 and finite."""
    if not 0 < number < math.inf:
        raise click.BadParameter(f"expected a finite number above 0, got {number:g}", param_hint=option)


def report_folder(options: Mapping[str, Any], default: Path | None) -> Path | None:
    """Where the report goes by ``--out`` and ``--no-report``; None for no report."""
    if options["out"] and options["no_report"]:
        raise click.UsageError("--out and --no-report exclude each other")
    if options["no_report"]:
        return None
    return Path(options["out"]) if options["out"] else default


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
        self._check_apart()
        if self.folder is not None:
            _check_writable(self.folder, "--out", make=True)
        for name, target in self.files.items():
            if target != STDOUT:
                _check_file(Path(target), f"--{name}")

    def _check_apart(self) -> None:
        """Two results in one file would leave the second."""
        report = [os.path.realpath(self.folder / name) for name in REPORT_FILES] if self.folder is not None else []
        owners = dict.fromkeys(report, "the report")
        for name, target in self.files.items():
            path = Path(target)
            if target == STDOUT or is_stream(path):
                continue
            owner = owners.setdefault(os.path.realpath(path), f"--{name}")
            # a report's JSON is the same text
            if owner != f"--{name}" and not (name == "json" and path.suffix == ".json"):
                raise click.UsageError(f"{owner} and --{name} would both be written to {target}")

    def checkpoint(self, name: str, text: Callable[[], str]) -> None:
        """Write what a running command has found by now to a file of the report folder, now and then."""
        if self.folder is None or time.monotonic() - self.last_checkpoint < CHECKPOINT_EVERY_S:
            return
        self.put(name, text())
        self.last_checkpoint = time.monotonic()

    def put(self, name: str, text: str) -> None:
        """Write a file of the report folder, where there is one."""
        if self.folder is not None:
            replace_text(self.folder / name, text)

    def deliver(self, texts: Mapping[str, str]) -> None:
        """Write each format where it was asked for."""
        for name, text in texts.items():
            if self.files[name] == STDOUT:
                click.echo(text, nl=False)
            else:
                replace_text(Path(self.files[name]), text)

    def console(self) -> Console:
        """Where tables go: standard output, or standard error when a format has taken that."""
        return _console(to_stderr=STDOUT in self.files.values())


def _console(*, to_stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    wide = stream.isatty() or "COLUMNS" in os.environ
    return Console(file=stream, width=None if wide else PIPE_WIDTH, highlight=False)


def _check_file(path: Path, option: str) -> None:
    if path.is_dir():
        raise click.BadParameter(f"{path} is a folder, not a file", param_hint=option)
    try:
        target = followed(path)
    except OSError as error:
        raise click.BadParameter(f"can't write to {path}: {error.strerror}", param_hint=option) from error
    if not is_stream(path):
        _check_writable(target.parent, option, make=False)
    elif not os.access(path, os.W_OK):
        raise click.BadParameter(f"can't write to {path}: {os.strerror(errno.EACCES)}", param_hint=option)


def _check_writable(folder: Path, option: str, *, make: bool) -> None:
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        # asking for the permission bits would be wrong for root and on network drives
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise click.BadParameter(f"can't write to {folder}: {error.strerror}", param_hint=option) from error
