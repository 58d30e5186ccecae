"""A kernel report as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from sola_profile.kernel_result import KernelReport
from sola_profile.report.kernel_tables import (
    TRIED,
    backend_table,
    busy_sentence,
    ceiling_table,
    crossover_table,
    groups,
    headline,
    model_remarks,
    model_table,
    remarks,
    share_table,
    speed_table,
    summary_table,
)
from sola_profile.report.terminal import print_table


def print_kernels(report: KernelReport, console: Console) -> None:
    """Print tables and remarks; colours and width are the console's matter."""
    console.print(Text(headline(report), style="bold"))
    if busy := busy_sentence(report):
        console.print(Text(busy, style="yellow"))
    console.print()
    print_table(backend_table(report), console)
    print_table(ceiling_table(report), console)
    for op, mode, rows in groups(report):
        print_table(speed_table(op, mode, rows), console)
        for remark in remarks(rows):
            console.print(Text(f" {remark}", style="yellow"))
        print_table(share_table(report, op, mode, rows), console)
    if report.crossovers:
        print_table(crossover_table(report).without(TRIED), console)
    if report.models:
        print_table(model_table(report), console)
        for remark in model_remarks(report):
            console.print(Text(f" {remark}", style="yellow"))
    if report.rows:
        print_table(summary_table(report), console)
    if report.interrupted:
        console.print(Text("Interrupted: the rows above are those that were finished.", style="bold red"))
