"""``sola-profile machine``: what this machine reaches at best, measured, kept and checked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from sola_profile.case import DTYPES, MOST_THREADS, nearest
from sola_profile.commands.output import Targets, checked
from sola_profile.exit_codes import ExitCode
from sola_profile.kernel_case import parse_threads

if TYPE_CHECKING:
    from sola_profile.hardware import Machine
    from sola_profile.machine_measuring import Wanted


@click.command()
@click.option(
    "--threads", metavar="NUMBERS", help="Threads of PyTorch's CPU operators, such as 1,all; all unless given."
)
@click.option("--dtype", default="float32", show_default=True, metavar="DTYPE", help=f"{', '.join(DTYPES)}.")
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cuda or cuda:N.")
@click.option("--fresh", is_flag=True, help="Measure anew, whatever is kept.")
@click.option("--check", is_flag=True, help="Only look whether kept ceilings hold; exit with 4 if they don't.")
@click.option("--list", "as_list", is_flag=True, help="Name every machine that predict --machine takes.")
@click.option("--show", metavar="NAME", help="Show one of these instead of measuring.")
@click.option("--json", "json_file", metavar="FILE", help="Write the ceilings as JSON; - is standard output.")
def machine(**options: Any) -> None:
    """Measure in about 10 seconds what this machine reaches at best, and keep it for predictions.

    Rates of matrix products, convolutions, attention, norms and element-wise operators by shape; copies by working set;
    memory that is new to the process; what a call costs. Kept ceilings are checked by a few of their rates in about a
    second, and measured anew where one is off by more than a fifth.
    """
    targets = Targets(None, {"json": options["json_file"]} if options["json_file"] else {})
    targets.check()
    if options["as_list"]:
        show_list(targets)
        return
    if options["show"]:
        show(find(options["show"], options["dtype"]), targets)
        return
    wanted = read_wanted(options)
    if targets.files and len(wanted) > 1:
        raise click.UsageError(f"--json writes one machine; --threads {options['threads']} are {len(wanted)}")
    for one in wanted:
        if options["check"]:
            check(one)
        else:
            from sola_profile.commands.ceilings import this_machine

            show(this_machine(one, fresh=options["fresh"]), targets)


def read_wanted(options: dict[str, Any]) -> list[Wanted]:
    """Device, dtype and numbers of threads, checked."""
    import torch

    from sola_profile.machine import check_device
    from sola_profile.machine_measuring import Wanted

    check_dtype(options["dtype"])
    checked(lambda: check_device(options["device"]), "--device")
    every = torch.get_num_threads()
    threads = checked(lambda: parse_threads(options["threads"] or "all", every), "--threads")
    return [Wanted(options["device"], options["dtype"], number) for number in threads]


def check_dtype(dtype: str) -> None:
    """Bad use unless PyTorch has such a dtype for models."""
    if dtype not in DTYPES:
        message = f"expected one of {', '.join(DTYPES)}, got {dtype!r}{nearest(dtype, DTYPES)}"
        raise click.BadParameter(message, param_hint="--dtype")


def read_threads(text: str | None) -> int | None:
    """``--threads``: a number, or None when it wasn't given."""
    if text is None:
        return None
    if not text.isdigit() or not 1 <= int(text) <= MOST_THREADS:
        raise click.BadParameter(f"expected a number from 1 to {MOST_THREADS}, got {text!r}", param_hint="--threads")
    return int(text)


def find(name: str, dtype: str) -> Machine:
    """A machine by name or file; an unknown one is bad use."""
    from sola_profile.machine_store import find_machine

    check_dtype(dtype)
    return checked(lambda: find_machine(name, dtype))


def check(wanted: Wanted) -> None:
    """Say whether kept ceilings hold, and exit with 4 if they don't."""
    from sola_profile.commands.ceilings import drift_text
    from sola_profile.machine_measuring import kept

    found, drifts = kept(wanted)
    if found is None:
        raise click.UsageError(
            f"no ceilings are kept for {wanted.device}, {wanted.dtype}, threads: {wanted.threads}; run sola-profile machine"
        )
    for drift in drifts:
        click.echo(drift_text(drift), err=True)
    if drifts:
        sys.exit(ExitCode.UNSTABLE)
    click.echo(f"the ceilings of {found.name} hold")


def show(found: Machine, targets: Targets) -> None:
    """Tables on the terminal, JSON where it was asked for."""
    from rich.text import Text

    from sola_profile.machine_store import json_text
    from sola_profile.report.machine_tables import machine_headline, machine_tables
    from sola_profile.report.terminal import print_table

    if targets.files:
        targets.deliver({"json": json_text(found)})
    console = targets.console()
    console.print(Text(machine_headline(found), style="bold"))
    console.print()
    for table in machine_tables(found):
        print_table(table, console)


def show_list(targets: Targets) -> None:
    """Every machine's name with a word about it."""
    from sola_profile.machine_store import folder, listed

    console = targets.console()
    for name, what in listed():
        console.print(f"{name}: {what}", soft_wrap=True, markup=False)
    console.print(f"measured ones are kept in {folder()}", soft_wrap=True, markup=False)
