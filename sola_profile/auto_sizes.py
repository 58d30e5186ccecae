"""``--res auto``: square sizes, each √2 times the one before, as far as the time budget and the memory go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch

from sola_profile.case import MAX_SIDE, Resolution, Settings
from sola_profile.cost.liveness import predict_peak
from sola_profile.machine import available_bytes
from sola_profile.measure import flop_counter
from sola_profile.measure.latency import FEWEST_SAMPLES, timer_for
from sola_profile.measuring import FEWEST_RUNS
from sola_profile.source import InputShape, ModelSource
from sola_profile.workload import Workload, build, cpu_threads

SMALLEST_SIDE = 224
RATIO = 2**0.5
# of models without a spec, whose stride is not known before they are looked at; most have this one
USUAL_STRIDE = 32
# a size takes its samples and what is run before them
RUNS = FEWEST_SAMPLES + FEWEST_RUNS
# of the budget; the rest is for the models beside it, which cost up to as much again
SHARE = 0.5


@dataclass(frozen=True)
class Candidate:
    """A size with the predicted peak memory; ``run_s`` is what one run should take, None where nothing is measured."""

    resolution: Resolution
    peak_bytes: int
    run_s: float | None


@dataclass(frozen=True)
class Choice:
    """The sizes, from few pixels to many, and why there are no more."""

    resolutions: tuple[Resolution, ...]
    why: str


def choose(candidates: Iterable[Candidate], free_bytes: int, budget_s: float | None) -> Choice:
    """Take sizes in order until one doesn't fit in memory, or in what is left of the share of the budget.

    The same candidates, memory and budget give the same sizes. The first is taken whatever it takes.
    """
    taken: list[Resolution] = []
    spent_s = 0.0
    for candidate in candidates:
        side = candidate.resolution
        if candidate.peak_bytes > free_bytes and taken:
            return Choice(tuple(taken), f"{side} needs {candidate.peak_bytes:,} bytes and {free_bytes:,} are free")
        if candidate.run_s is not None and budget_s is not None:
            spent_s += RUNS * candidate.run_s
            if spent_s > SHARE * budget_s and taken:
                why = f"{RUNS} runs of {side}, ≈ {candidate.run_s:.3g} s each, exceed {SHARE:.0%} of {budget_s:g} s"
                return Choice(tuple(taken), why)
        taken.append(side)
    return Choice(tuple(taken), f"a side has at most {MAX_SIDE:,} pixels")


def sides(stride: int) -> Iterator[int]:
    """224, 320, 448, 640, …: multiples of the stride."""
    last = 0
    for step in count():
        side = max(1, round(SMALLEST_SIDE * RATIO**step / stride)) * stride
        if side > MAX_SIDE:
            return
        if side > last:
            yield side
        last = side


def auto_sizes(
    source: ModelSource,
    settings: Settings,
    budget_s: float | None,
    shape: InputShape | None = None,
) -> Choice:
    """The sizes for one model on this machine now.

    Peaks and multiply-accumulates come from the meta device; a run is timed at the first size, and takes time in
    proportion to the multiply-accumulates at the others. Raises what the model raises when it doesn't take the first size.
    """
    stride = USUAL_STRIDE if source.spec is None else source.spec.stride
    with cpu_threads(settings.threads):
        rate = (
            None
            if budget_s is None
            else _seconds_per_mac(source, settings, shape, Resolution(*[next(sides(stride))] * 2))
        )
        look = partial(_candidate, source, settings, shape, rate)
        return choose(map(look, sides(stride)), available_bytes(torch.device(settings.device)), budget_s)


def _candidate(
    source: ModelSource, settings: Settings, shape: InputShape | None, rate: float | None, side: int
) -> Candidate:
    resolution = Resolution(side, side)
    workload = _workload(source, settings, shape, resolution, "meta")
    run_s = None if rate is None else rate * _macs(workload, resolution)
    return Candidate(resolution, predict_peak(workload, resolution).total_bytes, run_s)


def _seconds_per_mac(
    source: ModelSource, settings: Settings, shape: InputShape | None, resolution: Resolution
) -> float:
    """From the faster of two runs; the first one is slow."""
    workload = _workload(source, settings, shape, resolution)
    step, timer = workload.step(workload.image(resolution)), timer_for(torch.device(settings.device))
    run_s = min(timer.time(step) for _ in range(2))
    return run_s / max(1, _macs(_workload(source, settings, shape, resolution, "meta"), resolution))


def _macs(workload: Workload, resolution: Resolution) -> int:
    return flop_counter.count_step(workload.step(workload.image(resolution))).macs


def _workload(
    source: ModelSource,
    settings: Settings,
    shape: InputShape | None,
    resolution: Resolution,
    device: str | None = None,
) -> Workload:
    # other models than backbones may be built for one size
    return build(source, settings, device, shape=shape, resolution=None if source.spec else resolution)
