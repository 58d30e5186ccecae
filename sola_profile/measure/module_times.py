"""Measured time per module: the clock is read where a module begins and where it ends.

Groups are paths cut to a depth; the time of modules further down counts with their group, and what runs outside of all
counts with the model itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

from torch import nn

from sola_profile.pieces import called_modules
from sola_profile.workload import Step

ITSELF = "(itself)"


def group_of(path: str, depth: int) -> str:
    """The group of a module's path."""
    return ".".join(path.split(".")[:depth]) or ITSELF


def time_modules(model: nn.Module, step: Step, depth: int, runs: int) -> dict[str, float]:
    """Median seconds of every group over some runs of a warm step on the CPU."""
    taken = [_time_once(model, step, depth) for _ in range(runs)]
    return {group: median(times.get(group, 0.0) for times in taken) for group in taken[0]}


def _time_once(model: nn.Module, step: Step, depth: int) -> Mapping[str, float]:
    times: dict[str, float] = {}
    stack = [ITSELF]
    last_s = time.perf_counter()

    def mark(change: Callable[[], object]) -> None:
        nonlocal last_s
        now_s = time.perf_counter()
        times[stack[-1]] = times.get(stack[-1], 0.0) + now_s - last_s
        change()
        last_s = time.perf_counter()

    with _hooks(model, depth, lambda group: mark(lambda: stack.append(group)), lambda: mark(stack.pop)):
        step()
        mark(lambda: None)
    return times


@contextmanager
def _hooks(model: nn.Module, depth: int, begin: Callable[[str], None], end: Callable[[], None]) -> Iterator[None]:
    def on_begin(group: str) -> Callable[..., None]:
        return lambda *_: begin(group)

    def on_end(*_: Any) -> None:
        end()

    handles = []
    for path, module in called_modules(model):
        # containers are never called, and whether a module is one shows only when its parts are
        if path:
            handles.append(module.register_forward_pre_hook(on_begin(group_of(path, depth))))
            handles.append(module.register_forward_hook(on_end))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
