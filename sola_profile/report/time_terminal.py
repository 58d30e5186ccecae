"""Predicted times on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from sola_profile.report.tables import Table
from sola_profile.report.terminal import print_table, remarks
from sola_profile.report.time_tables import (
    accuracy_sentences,
    group_table,
    headline,
    interval_sentences,
    time_table,
    turn_sentences,
    warning_sentences,
)
from sola_profile.time_result import TimeResult


def print_times(result: TimeResult, console: Console, by: str = "kind") -> None:
    """Print tables and sentences; colours and width are the console's matter."""
    console.print(Text(headline(result), style="bold"))
    console.print()
    measured = any(row.latency or row.missing for model in result.models for row in model.rows)
    alone = len(result.models) == 1
    for model in result.models:
        _print_table(time_table(model, measured), console)
        for row in model.rows if alone else ():
            _print_table(group_table(row, by, result.depth), console)
        for sentence in turn_sentences(model):
            console.print(Text(sentence), soft_wrap=True)
    for sentence in warning_sentences(result):
        console.print(Text(sentence, style="yellow"), soft_wrap=True)
    for sentence in accuracy_sentences(result):
        console.print(Text(sentence, style="bold"), soft_wrap=True)
    for sentence in interval_sentences(result):
        console.print(Text(sentence), soft_wrap=True)
    if result.interrupted:
        console.print(Text("Interrupted: the rows above are those that were finished.", style="bold red"))


def _print_table(table: Table, console: Console) -> None:
    if not table.rows:
        return
    print_table(table, console)
    for remark in remarks(table):
        console.print(Text(remark, style="yellow"))
