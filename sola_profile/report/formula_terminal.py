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
    missing_sentences,
    route_sentence,
    size_table,
    witness_table,
)
from sola_profile.report.terminal import remarks, rich_table


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
    for table in (group_table(result, by, depth), size_table(result)):
        if table is not None:
            console.print(rich_table(table))
    found = witness_table(result)
    if found is not None and not all(row.exact for row in result.rows):
        console.print(rich_table(found))
        for remark in remarks(found):
            console.print(Text(remark, style="yellow"))
    for sentence in missing_sentences(result):
        console.print(Text(sentence, style="yellow"))
    console.print(Text(coverage_sentence(result)))
