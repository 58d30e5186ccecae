"""Options and checks that every command shares which sets new figures against old ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sola_profile.commands.output import checked

if TYPE_CHECKING:
    from sola_profile.comparison import Gates, Mismatch
    from sola_profile.result import Profile

F = TypeVar("F", bound=Callable[..., Any])

_SHARE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%?)")

_OPTIONS = (
    click.option(
        "--tolerance",
        default="0%",
        show_default=True,
        metavar="SHARE",
        help="Increase of counted figures to let through.",
    ),
    click.option(
        "--max-regression", metavar="SHARE", help="Let measured time decide too: the increase to let through, as in 5%."
    ),
    click.option(
        "--allow-mismatch", is_flag=True, help="Compare though the runs' settings, software or hardware differ."
    ),
)


def gate_options(command: F) -> F:
    """``--tolerance``, ``--max-regression``, ``--allow-mismatch``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_gates(options: Mapping[str, Any]) -> Gates:
    """The thresholds."""
    from sola_profile.comparison import Gates

    limit = options["max_regression"]
    return Gates(
        checked(lambda: parse_share(options["tolerance"]), "--tolerance"),
        None if limit is None else checked(lambda: parse_share(limit), "--max-regression"),
    )


def parse_share(text: str) -> float:
    """Read ``5%``, ``5 %`` or ``0.05``; raises ``ValueError``."""
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a share such as 5% or 0.05, got {text!r}")
    return float(match[1]) / (100 if match[2] else 1)


def load_side(path: str) -> Profile:
    """A result file; what is wrong with it is bad use."""
    from sola_profile.report.read_json import load_profile

    try:
        return checked(lambda: load_profile(path))
    except OSError as error:
        raise click.UsageError(f"can't read {path}: {error.strerror}") from error


def refuse_mismatches(found: Sequence[Mismatch], *, allow: bool) -> None:
    """Runs that differ are bad use, unless that is wanted."""
    if found and not allow:
        differences = "\n  ".join(map(str, found))
        raise click.UsageError(
            f"the runs differ in what their figures depend on:\n  {differences}\n"
            "--allow-mismatch compares them all the same"
        )
