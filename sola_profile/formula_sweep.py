"""The conductor of ``sola-profile formula``: a model → its polynomials → independent counts at some sizes → one result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sola_profile.analysis import COUNTERS, count_all
from sola_profile.case import Resolution, Settings
from sola_profile.compare.formula_check import check
from sola_profile.cost.closed_form import closed_form
from sola_profile.cost.recording import Recording
from sola_profile.cost.symbolic import LIMIT_S, ModelFormula, model_formula, peak_of, total
from sola_profile.errors import first_line
from sola_profile.formula_result import Coverage, Fit, FormulaResult, SizeRow
from sola_profile.machine import available_bytes
from sola_profile.measure.counts import Count
from sola_profile.measure.peak_memory import measure_peak_bytes
from sola_profile.memory import PeakMemory
from sola_profile.source import InputShape, ModelSource
from sola_profile.workload import build, inference_step


@dataclass(frozen=True)
class MemoryOptions:
    """``measure``: run the model once at every size that fits, and read the allocator. ``limit_bytes``: what may fit."""

    measure: bool = False
    limit_bytes: int | None = None


class FormulaSweep:
    """One run: go through ``run()`` as far as it gets, then ask for the ``result()``."""

    def __init__(
        self,
        source: ModelSource,
        resolutions: Sequence[Resolution],
        shape: InputShape | None = None,
        dtype: str = "float32",
        limit_s: float = LIMIT_S,
        command: str = "",
        memory: MemoryOptions | None = None,
    ) -> None:
        self._source, self._resolutions, self._shape = source, tuple(resolutions), shape or InputShape()
        self._dtype, self._limit_s, self._command = dtype, limit_s, command
        self._memory = memory or MemoryOptions()
        self._formula: ModelFormula | None = None
        self._rows: list[SizeRow] = []
        self._failed: dict[str, str] = {}
        self._fit: Fit | None = None

    def run(self) -> Iterator[str]:
        """Find the formula, then check it size by size; yields what is done next."""
        yield f"polynomials of {self._source.name}"
        self._formula = model_formula(self._source, self._shape, self._dtype, self._limit_s)
        for resolution in self._resolutions:
            yield f"counting {self._source.name} at {resolution}"
            try:
                row = _row(self._formula, resolution)
            except Exception as error:
                self._failed[str(resolution)] = first_line(error)
                continue
            self._rows.append(row)
            if self._memory.measure:
                yield f"measuring the memory of {self._source.name} at {resolution}"
                self._rows[-1] = replace(row, **_measured(self._formula, resolution, row.memory))
        if self._memory.limit_bytes is not None:
            self._fit = _fit(self._formula, self._memory.limit_bytes)
            if self._fit and self._fit.resolution and self._fit.memory and self._memory.measure:
                resolution, memory = self._fit.resolution, self._fit.memory
                yield f"measuring the memory of {self._source.name} at {resolution}"
                self._fit = replace(self._fit, **_measured(self._formula, resolution, memory))

    def result(self) -> FormulaResult | None:
        """Everything that is finished by now; None before the formula is."""
        if self._formula is None:
            return None
        recordings = [row.recording for row in self._rows]
        coverage = _coverage(recordings)
        return FormulaResult(self._command, self._formula, tuple(self._rows), self._failed, coverage, self._fit)


def _row(formula: ModelFormula, resolution: Resolution) -> SizeRow:
    recording = formula.at(resolution)
    counts, missing = _counts(formula, resolution)
    spec = formula.source.spec
    closed = None if spec is None else closed_form(spec, resolution, formula.shape.batch).macs
    return SizeRow(
        resolution,
        recording,
        total(recording.calls),
        formula.covers(resolution),
        check(recording, counts, closed),
        missing,
        peak_of(recording) if recording.moments else formula.memory(resolution),
    )


def _fit(formula: ModelFormula, limit_bytes: int) -> Fit | None:
    """What fits in a given memory; None where memory has no formula."""
    if formula.recording is None or not formula.recording.moments:
        return None
    resolution = formula.largest_square(limit_bytes)
    return Fit(limit_bytes, resolution, formula.memory(resolution) if resolution else None)


def _measured(formula: ModelFormula, size: Resolution, predicted: PeakMemory) -> dict[str, Any]:
    """What PyTorch's CPU allocator hands out in a real forward pass, or why there is none."""
    free_bytes = available_bytes(torch.device("cpu"))
    if predicted.total_bytes > free_bytes:
        return {"unmeasured": f"needs {predicted.total_bytes:,} bytes, {free_bytes:,} are free"}
    dtype = getattr(torch, formula.dtype)
    try:
        model = formula.source.build(size if formula.sized else None).to(dtype)
        image = torch.rand(formula.shape.at(size.height, size.width)).to(dtype)
        step = inference_step(model, image)
        # what a first run keeps for later ones is not the pass's own
        step()
        step_bytes = measure_peak_bytes(step, image.device)
    except Exception as error:
        return {"unmeasured": first_line(error)}
    return {"measured_memory": PeakMemory(predicted.parameter_bytes, predicted.input_bytes, step_bytes)}


def _counts(formula: ModelFormula, resolution: Resolution) -> tuple[list[Count], dict[str, str]]:
    """What the counters find on the meta device, and why one found nothing."""
    size = resolution if formula.sized else None
    settings = Settings(formula.shape.batch, formula.dtype)
    try:
        workload = build(formula.source, settings, "meta", shape=formula.shape, resolution=size)
    except Exception as error:
        return [], dict.fromkeys(COUNTERS, first_line(error))
    return count_all(workload, resolution)


def _coverage(recordings: Sequence[Recording]) -> Coverage:
    calls = [call for recording in recordings for call in recording.calls]
    moved = sum(call.read_bytes + call.written_bytes for call in calls)
    known = sum(call.read_bytes + call.written_bytes for call in calls if call.kind)
    return Coverage(known / moved if moved else 1.0, tuple(sorted({call.operator for call in calls if not call.kind})))
