"""A profile as tables on the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from sola_profile.report.sentences import (
    coverage_sentence,
    growth_sentences,
    load_sentences,
    polynomial_sentences,
    refusal_sentences,
    witness_sentences,
)
from sola_profile.report.tables import (
    Table,
    comparison_table,
    difference_table,
    headline,
    kinds_table,
    latency_table,
    memory_table,
    work_table,
)
from sola_profile.result import Profile


def print_profile(profile: Profile, console: Console) -> None:
    """Print tables and sentences; colours and width are the console's matter."""
    console.print(Text(headline(profile), style="bold"))
    console.print()
    for table in _tables(profile):
        print_table(table, console)
        for remark in remarks(table):
            console.print(Text(remark, style="yellow"))
    for sentence in load_sentences(profile):
        console.print(Text(sentence, style="yellow"))
    sentences = [*polynomial_sentences(profile), *growth_sentences(profile.model, profile)]
    for sentence in (
        *sentences,
        *witness_sentences(profile),
        *refusal_sentences(profile),
        coverage_sentence(profile, names=False),
    ):
        console.print(Text(sentence))
    if profile.interrupted:
        console.print(Text("Interrupted: the rows above are those that were finished.", style="bold red"))


def _tables(profile: Profile) -> list[Table]:
    tables = [work_table(profile)]
    differences = difference_table(profile)
    if differences is not None:
        tables.append(differences)
    if profile.budget_s is not None:
        tables.append(latency_table(profile))
    tables += [memory_table(profile).without("Peak at"), kinds_table(profile)]
    comparison = comparison_table(profile)
    return tables if comparison is None else [*tables, comparison]


def remarks(table: Table) -> Iterator[str]:
    """The remarks of a table's rows, as lines that name their row."""
    size = ""
    for row in table.rows:
        size = row[0] or size
        names = [cell for name, cell in zip(table.columns, row, strict=True) if name in table.left and name and cell]
        if "" in table.columns and (remark := row[table.columns.index("")]):
            yield f" {' '.join([size, *names])}: {remark}"


# no table is as wide
ANY_WIDTH = 10_000


def print_table(table: Table, console: Console) -> None:
    """Print a table whole: where the console is narrow headings stand in lines, and what is still too wide goes beyond its edge."""
    shown = rich_table(table)
    if _width(shown, console) > console.width:
        shown = rich_table(table, tall=True)
        shown.width = _width(shown, console)
    console.print(shown, crop=False)


def _width(shown: RichTable, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=ANY_WIDTH), shown).maximum


def rich_table(table: Table, *, tall: bool = False) -> RichTable:
    """A table as rich draws it, without the column of remarks, which has no name.

    ``tall``: headings in lines that are no wider than what stands below them, or than their longest word.
    """
    shown = RichTable(
        # a name with another pattern has brackets, which rich would take for markup
        title=escape(table.title),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    narrow = table.without("") if "" in table.columns else table
    for number, name in enumerate(narrow.columns):
        heading = _in_lines(name, [row[number] for row in narrow.rows]) if tall else name
        shown.add_column(heading, justify="left" if name in table.left else "right", no_wrap=True)
    for row in narrow.rows:
        shown.add_row(*(Text(cell, style="bold red" if cell.startswith("differ") else "") for cell in row))
    return shown


def _in_lines(heading: str, cells: list[str]) -> str:
    return textwrap.fill(heading, max(map(cell_len, [*cells, *heading.split(), " "])))
