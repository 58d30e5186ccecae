"""Times whole models with our operators and with each replaced by its best route in PyTorch, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sola_profile.case import Resolution, Settings
from sola_profile.compare.ratios import ratio
from sola_profile.kernel_measuring import CPU, describe
from sola_profile.kernel_result import ModelRow
from sola_profile.measure.contest import prepare, race, raise_failure
from sola_profile.measure.latency import Timer, timer_for
from sola_profile.peers.swap import pytorch_operators
from sola_profile.result import LeftOut, OverBudget
from sola_profile.workload import Step, Workload, build, cpu_threads, inference_step
from sola_vision.spec import BackboneSpec

OURS, PYTORCH = "ours", "PyTorch"
WARMUP_SHARE = 0.1
# a first run of both ways, and one to time
FEWEST_RUNS = 2


@dataclass(frozen=True)
class ModelCase:
    """A model at a size, forward, batch 1."""

    spec: BackboneSpec
    resolution: Resolution
    dtype: str
    threads: int

    def __str__(self) -> str:
        return f"{self.spec.name} at {self.resolution} {self.dtype}"


def model_cases(
    specs: Sequence[BackboneSpec], resolutions: Sequence[Resolution], dtypes: Sequence[str], threads: int
) -> Iterator[ModelCase]:
    """Every model in every dtype at every size."""
    for spec in specs:
        for dtype in dtypes:
            yield from (ModelCase(spec, resolution, dtype, threads) for resolution in resolutions)


class ModelComparison:
    """Compares models one by one; ``rounds``: turns of both ways at most."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._timer: Timer = timer_for(CPU)
        # seconds per pixel of both ways together, of the last size of every model
        self._paces: dict[tuple[str, str], float] = {}

    def compare(self, case: ModelCase, allowance_s: float) -> ModelRow:
        """Both ways in turn; what fails, or would take more than the time allowed, is said in the row."""
        blank = ModelRow(case.spec.name, str(case.resolution), case.dtype, case.threads)
        estimated_s = self._paces.get(_setting(case), 0.0) * case.resolution.pixels
        if FEWEST_RUNS * estimated_s > allowance_s:
            return replace(blank, missing=OverBudget(estimated_s, round(allowance_s, 1)))
        try:
            with cpu_threads(case.threads):
                return self._timed(case, blank, allowance_s)
        except (MemoryError, RuntimeError) as error:
            return replace(blank, missing=LeftOut(describe(error)))

    def _timed(self, case: ModelCase, blank: ModelRow, allowance_s: float) -> ModelRow:
        end = self._timer.now() + allowance_s
        workload = build(case.spec, Settings(dtype=case.dtype, threads=case.threads))
        image = workload.image(case.resolution)
        ours = inference_step(workload.model, image)
        steps: dict[str, Step] = {OURS: ours, PYTORCH: _swapped(ours)}
        firsts, outputs = zip(*(_first_run(self._timer, workload, image, name) for name in steps), strict=True)
        self._paces[_setting(case)] = sum(firsts) / case.resolution.pixels
        limit_s = WARMUP_SHARE * allowance_s
        contestants = {
            name: prepare(step, self._timer, limit_s, first_s)
            for (name, step), first_s in zip(steps.items(), firsts, strict=True)
        }
        race(contestants, self._timer, self._rounds, end - self._timer.now(), raise_failure)
        mine, theirs = (contestants[name].latency() for name in steps)
        if mine is None or theirs is None:
            return replace(blank, missing=OverBudget(sum(firsts), round(allowance_s, 1)))
        return replace(blank, ours=mine, peer=theirs, ratio=ratio(mine, theirs), difference=_difference(*outputs))


def _first_run(timer: Timer, workload: Workload, image: Tensor, name: str) -> tuple[float, Tensor]:
    """Time and output of the first run of one way."""
    kept: list[Tensor] = []
    with torch.inference_mode(), nullcontext() if name == OURS else pytorch_operators():
        time_s = timer.time(lambda: kept.append(workload.model(image)))
    return time_s, kept[0].double()


def _swapped(step: Step) -> Step:
    def swapped() -> None:
        with pytorch_operators():
            step()

    return swapped


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest number, which shows that both did the same work."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _setting(case: ModelCase) -> tuple[str, str]:
    return case.spec.name, case.dtype
