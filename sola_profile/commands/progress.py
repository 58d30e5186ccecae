"""Progress of a sweep on standard error: a bar on a terminal, a line per case elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from sola_profile.measuring import Progress

MEASURING = "measuring"
REDRAW_EVERY_S = 0.5


def follow(events: Iterable[Progress]) -> Iterator[Progress]:
    """Pass events on while showing them."""
    console = Console(stderr=True, highlight=False)
    yield from _bars(events, console) if console.is_terminal else _lines(events, console)


def _bars(events: Iterable[Progress], console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
    )
    # no thread that redraws in the middle of a measured step: the bar moves between steps, now and then
    with Bars(*columns, console=console, transient=True, auto_refresh=False) as bars:
        tasks: dict[str, TaskID] = {}
        drawn_at = float("-inf")
        for event in events:
            if event.phase not in tasks:
                tasks[event.phase] = bars.add_task(event.phase, what="")
                drawn_at = float("-inf")
            bars.update(tasks[event.phase], completed=event.done, total=event.total, what=event.what)
            if event.phase != MEASURING or time.monotonic() - drawn_at > REDRAW_EVERY_S:
                bars.refresh()
                drawn_at = time.monotonic()
            yield event


def _lines(events: Iterable[Progress], console: Console) -> Iterator[Progress]:
    said = ""
    for event in events:
        line = event.phase if event.phase == MEASURING else f"{event.phase} {event.what}"
        if line != said:
            console.print(line, soft_wrap=True)
            said = line
        yield event
