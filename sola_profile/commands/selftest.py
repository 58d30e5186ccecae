"""``sola-profile selftest``: which FLOP counters can be trusted on the installed torch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from sola_profile.commands.output import Targets
from sola_profile.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sola_profile.report.tables import Table
    from sola_profile.selftest import Counter, Outcome


@click.command()
def selftest() -> None:
    """Run attention and convolutions in many spellings through every counter, and say which can be trusted.

    Figures are shares of the true multiply-accumulates. Exits with 1 when a counter that the witnesses of this project
    rely on is wrong where it shouldn't be; the others are there because users meet their numbers.
    """
    import torch

    from sola_profile.report.terminal import print_table
    from sola_profile.selftest import COUNTERS, run, untrusted

    outcomes = list(run())
    console = Targets(None, {}).console()
    console.print(f"torch {torch.__version__}", highlight=False)
    print_table(table(outcomes, COUNTERS), console)
    for outcome in outcomes:
        for name, reason in outcome.failed.items():
            console.print(f"{name} failed on {outcome.spelling}: {reason}", highlight=False, markup=False)
    complaints = list(untrusted(outcomes))
    for complaint in complaints:
        click.echo(complaint, err=True)
    if complaints:
        sys.exit(ExitCode.INTERNAL)
    console.print("Every counter that the witnesses rely on is right.", highlight=False)


def table(outcomes: Sequence[Outcome], counters: Sequence[Counter]) -> Table:
    """Shares by spelling and counter; a star marks what the witnesses rely on."""
    from sola_profile.report.tables import Table

    names = [f"{counter.name}{'*' if counter.relied_on else ''}" for counter in counters]
    rows = tuple(
        (
            str(outcome.spelling),
            *(_share(outcome.shares[counter.name]) for counter in counters),
        )
        for outcome in outcomes
    )
    columns = ("Spelling", *names)
    return Table("Share of the true MACs that each counter finds", columns, rows, frozenset({"Spelling"}))


def _share(share: float | None) -> str:
    if share is None:
        return "–"
    # what is nearly right must not look right
    return f"{'≈ ' if share != 1 and round(share, 2) == 1 else ''}{100 * share:.0f} %"
