"""Options and checks that every command shares which sets new figures against old ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sola_profile.case import Resolution
from sola_profile.commands.output import checked
from sola_profile.exit_codes import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from sola_profile.comparison import Gates, Mismatch
    from sola_profile.result import Profile

F = TypeVar("F", bound=Callable[..., Any])

TOLERANCE = "0%"
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%?)")

_OPTIONS = (
    click.option(
        "--tolerance",
        metavar="SHARE",
        help=f"Increase of counted figures to let through.  [default: {TOLERANCE}]",
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

    limit, tolerance = options["max_regression"], options["tolerance"]
    return Gates(
        checked(lambda: parse_share(TOLERANCE if tolerance is None else tolerance), "--tolerance"),
        None if limit is None else checked(lambda: parse_share(limit), "--max-regression"),
    )


def parse_share(text: str) -> float:
    """Read ``5%``, ``5 %`` or ``0.05``; raises ``ValueError``, also for 1 and more without a sign, which mean percent."""
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a share such as 5% or 0.05, got {text!r}")
    if not match[2] and float(match[1]) >= 1:
        raise ValueError(f"expected a share such as 5% or 0.05, got {text!r}; did you mean {match[1]}%?")
    # a quotient of floats may miss the nearest one
    return float(Fraction(match[1]) / (100 if match[2] else 1))


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


@dataclass(frozen=True)
class Baseline:
    """An earlier result that a run is to be compared with, by the name of its file."""

    name: str
    profile: Profile
    gates: Gates
    allow_mismatch: bool

    def check(self, model: str, sizes: Sequence[Resolution], planned: Profile) -> None:
        """Refuse a run that can't be compared, before it costs time. ``planned``: the profile before its first row."""
        there = [str(row.resolution) for row in self.profile.model.rows]
        if not {str(size) for size in sizes} & set(there):
            raise click.UsageError(f"none of these sizes is in {self.name}, which has {', '.join(there)}")
        from sola_profile.comparison import Conditions, mismatches

        timed = planned.budget_s is not None
        new = Conditions(model, str(planned.shape), planned.settings, planned.environment, timed)
        old = Conditions.of(self.profile)
        if self.gates.limit is not None and not old.timed:
            raise click.UsageError(f"--max-regression compares times, and {self.name} has none")
        refuse_mismatches(mismatches(old, new), allow=self.allow_mismatch)

    def compare(self, finished: Profile, console: Console) -> ExitCode:
        """Print the comparison; the code that its gates give."""
        from sola_profile.comparison import compare
        from sola_profile.report.comparison import print_comparison

        found = checked(lambda: compare((self.name, self.profile), ("this run", finished), self.gates))
        console.print()
        print_comparison(found, console)
        return found.exit_code


def read_baseline(options: Mapping[str, Any]) -> Baseline | None:
    """``--baseline`` with its gates; the file is read before anything runs."""
    path = options["baseline"]
    if path is None:
        for name in ("tolerance", "max_regression", "allow_mismatch"):
            if options[name] not in (None, False):
                raise click.UsageError(f"--{name.replace('_', '-')} needs --baseline to compare with")
        return None
    return Baseline(path, load_side(path), read_gates(options), options["allow_mismatch"])
