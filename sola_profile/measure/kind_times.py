"""Measured time per kind of layer: the clock is read where one piece of the backbone ends and the next begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sola_profile.case import Resolution
from sola_profile.pieces import KINDS, piece_modules
from sola_profile.workload import Workload, inference_step

MOST_RUNS = 10


@dataclass(frozen=True)
class KindTimes:
    """Seconds per kind of layer, one mapping per run; the kinds of one run add up to all of its forward pass.

    A bridge's sampling of its source's state counts with the layer that the state comes from.
    """

    runs: tuple[Mapping[str, float], ...]

    @property
    def shares(self) -> dict[str, float]:
        """Share of each kind, from its median over the runs."""
        medians = {kind: median(run[kind] for run in self.runs) for kind in KINDS}
        whole = sum(medians.values())
        return {kind: time_s / whole for kind, time_s in medians.items()}


def time_kinds(workload: Workload, resolution: Resolution, limit_s: float) -> KindTimes:
    """Time forward passes of an eager, warm workload kind by kind: one, and up to ten within a time limit."""
    step = inference_step(workload.model, workload.image(resolution))
    start = time.perf_counter()
    runs = [_time_once(workload, step)]
    while len(runs) < MOST_RUNS and time.perf_counter() - start < limit_s:
        runs.append(_time_once(workload, step))
    return KindTimes(tuple(runs))


def _time_once(workload: Workload, step: Callable[[], None]) -> Mapping[str, float]:
    clock = _CudaClock(workload.device) if workload.device.type == "cuda" else _HostClock()
    marks: list[tuple[str, Any]] = []
    with _hooks(workload, lambda kind: marks.append((kind, clock.read()))):
        step()
    marks.append(("", clock.read()))
    times = dict.fromkeys(KINDS, 0.0)
    for (kind, start), (_, end) in pairwise(marks):
        times[kind] += clock.between(start, end)
    return times


@contextmanager
def _hooks(workload: Workload, begin: Callable[[str], None]) -> Iterator[None]:
    """Call ``begin(kind)`` whenever a piece of the backbone begins."""

    def hook_for(kind: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, _inputs: begin(kind)

    handles = [
        workload.model.get_submodule(piece.begins).register_forward_pre_hook(hook_for(piece.kind))
        for piece in piece_modules(workload.source.spec)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _HostClock:
    def read(self) -> Any:
        return time.perf_counter()

    def between(self, start: Any, end: Any) -> float:
        return float(end - start)


class _CudaClock(_HostClock):
    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.current_stream(device)

    def read(self) -> Any:
        return self.stream.record_event(torch.cuda.Event(enable_timing=True))

    def between(self, start: Any, end: Any) -> float:
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
