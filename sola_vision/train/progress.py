"""How far a run is, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# lines of a run whose standard error is no terminal
_LINES = 10


# called with step, steps and loss
Shown = Callable[[int, int, float], None]


@contextmanager
def shown(*, quiet: bool) -> Iterator[Shown | None]:
    """A bar on a terminal, ten lines elsewhere, nothing when ``quiet``."""
    console = Console(stderr=True)
    if quiet:
        yield None
    elif console.is_terminal:
        with _bar(console) as bar:
            # the first step tells how long it is
            task = bar.add_task("training", total=None, loss="")
            yield lambda step, steps, loss: bar.update(task, completed=step, total=steps, loss=_said(loss))
    else:
        yield _Lines(console)


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    return Progress(*columns, console=console, transient=True)


class _Lines:
    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, step: int, steps: int, loss: float) -> None:
        # the last step of every tenth
        if step * _LINES // steps > (step - 1) * _LINES // steps:
            self.console.print(f"step {step} of {steps}, {_said(loss)}", highlight=False)


def _said(loss: float) -> str:
    return f"loss {loss:.4g}"
