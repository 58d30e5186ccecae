"""Measuring ceilings for a command: progress on standard error, kept ones where they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from sola_profile.case import Settings

if TYPE_CHECKING:
    from sola_profile.hardware import Machine
    from sola_profile.machine_measuring import Wanted
    from sola_profile.measure.surfaces import Drift


def this_machine(wanted: Wanted, *, fresh: bool = False) -> Machine:
    """Ceilings of this machine: the kept ones where they hold, else measured now."""
    from sola_profile.machine_measuring import kept

    if not fresh:
        machine, drifts = kept(wanted)
        if machine is not None and not drifts:
            return machine
        for drift in drifts:
            click.echo(drift_text(drift), err=True)
    return measured(wanted)


def for_profile(settings: Settings, *, measure: bool, runs: bool) -> Machine | None:
    """Ceilings of this machine: kept ones, measured ones where asked for; None without or where nothing is predicted.

    Before a profile that ``runs`` anything it is looked whether kept ones still hold.
    """
    if settings.mode != "infer" or settings.compile or settings.device_type != "cpu":
        if measure:
            raise click.UsageError("--predict speaks of inference on the CPU without --compile")
        return None
    import torch

    threads = settings.threads or torch.get_num_threads()
    from sola_profile.machine_measuring import Wanted, kept
    from sola_profile.machine_store import stored

    wanted = Wanted("cpu", settings.dtype, threads)
    if measure:
        return this_machine(wanted)
    try:
        machine, drifts = kept(wanted) if runs else (stored("cpu", settings.dtype, threads), [])
    except ValueError as error:
        # a prediction is an extra; a broken file of it stops no profile
        click.echo(f"no latency is predicted: {error}", err=True)
        return None
    if drifts:
        click.echo(f"no latency is predicted: {drift_text(drifts[0])}; --predict measures all anew", err=True)
        return None
    return machine


def drift_text(drift: Drift) -> str:
    """What no longer holds."""
    return f"the kept ceilings no longer hold: {drift.name} is at {drift.ratio:.2g} × what it was"


def measured(wanted: Wanted) -> Machine:
    """Measure this machine and keep what was found."""
    from sola_profile.machine_measuring import Measuring

    measuring = Measuring(wanted)
    for _ in _followed(measuring.run(), wanted):
        pass
    if measuring.problem:
        click.echo(measuring.problem, err=True)
    assert measuring.machine is not None
    return measuring.machine


def _followed(names: Iterator[str], wanted: Wanted) -> Iterator[str]:
    """A bar on a terminal, which moves between probes; one line elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, highlight=False)
    what = f"measuring the ceilings of {wanted.device}, {wanted.dtype}, threads: {wanted.threads}"
    if not console.is_terminal:
        click.echo(f"{what}, about 10 s", err=True)
        yield from names
        return
    with Progress(console=console, transient=True, auto_refresh=False) as bars:
        task = bars.add_task(what, total=wanted.steps)
        for name in names:
            bars.update(task, advance=1, description=f"{what}: {name}")
            bars.refresh()
            yield name
