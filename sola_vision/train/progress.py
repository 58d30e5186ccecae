"""How far a run is, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# lines of a run whose standard error is no terminal
_LINES = 10


@contextmanager
def shown(*, quiet: bool) -> Iterator[_Shown | None]:
    """A bar on a terminal, ten lines elsewhere, nothing when ``quiet``; called with step, steps and loss."""
    if quiet:
        yield None
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield _Shown(console, bar)


class _Shown:
    """Remembers the bar's task, whose length the first step tells."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self.console, self.bar = console, bar
        self.task = bar.add_task("training", total=None, loss="")

    def __call__(self, step: int, steps: int, loss: float) -> None:
        self.bar.update(self.task, completed=step, total=steps, loss=f"loss {loss:.4g}")
        # the last step of every tenth
        if not self.console.is_terminal and step * _LINES // steps > (step - 1) * _LINES // steps:
            self.console.print(f"step {step} of {steps}, loss {loss:.4g}", highlight=False)
