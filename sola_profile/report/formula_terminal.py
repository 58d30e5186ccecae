"""A model's formula on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from sola_profile.formula_result import FormulaResult
from sola_profile.report.formula_tables import (
    coverage_sentence,
    formula_sentences,
    group_table,
    headline,
    memory_sentences,
    memory_table,
    missing_sentences,
    route_sentence,
    size_table,
    witness_table,
)
from sola_profile.report.tables import Table
from sola_profile.report.terminal import print_table, remarks


def print_formula(result: FormulaResult, console: Console, by: str = "kind", depth: int = 1) -> None:
    """Print formulas, tables and sentences; colours and width are the console's matter."""
    console.print(Text(headline(result), style="bold"))
    console.print(Text(route_sentence(result.formula)))
    console.print()
    sentences = list(formula_sentences(result))
    for sentence in sentences:
        console.print(Text(sentence), soft_wrap=True)
    if sentences:
        console.print()
    for table in (group_table(result, by, depth), size_table(result), memory_table(result)):
        _print_table(table, console)
    for sentence in memory_sentences(result):
        console.print(Text(sentence), soft_wrap=True)
    if not all(row.exact for row in result.rows):
        _print_table(witness_table(result), console)
    for sentence in missing_sentences(result):
        console.print(Text(sentence, style="yellow"))
    if result.rows:
        console.print(Text(coverage_sentence(result)))


def _print_table(table: Table | None, console: Console) -> None:
    """A table with its remarks below it; nothing for one that has nothing to show."""
    if table is None:
        return
    print_table(table, console)
    for remark in remarks(table):
        console.print(Text(remark, style="yellow"))
