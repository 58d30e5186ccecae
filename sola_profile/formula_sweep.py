"""The conductor of ``sola-profile formula``: a model → its polynomials → independent counts at some sizes → one result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from sola_profile.case import Resolution
from sola_profile.compare.formula_check import check
from sola_profile.cost.closed_form import closed_form
from sola_profile.cost.recording import Recording
from sola_profile.cost.symbolic import LIMIT_S, ModelFormula, model_formula, total
from sola_profile.formula_result import Coverage, FormulaResult, SizeRow
from sola_profile.measure import flop_counter, fvcore_counter
from sola_profile.measure.counts import Count
from sola_profile.source import InputShape, ModelSource


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
    ) -> None:
        self._source, self._resolutions, self._shape = source, tuple(resolutions), shape or InputShape()
        self._dtype, self._limit_s, self._command = dtype, limit_s, command
        self._formula: ModelFormula | None = None
        self._rows: list[SizeRow] = []
        self._failed: dict[str, str] = {}

    def run(self) -> Iterator[str]:
        """Find the formula, then check it size by size; yields what is done next."""
        yield f"polynomials of {self._source.name}"
        self._formula = model_formula(self._source, self._shape, self._dtype, self._limit_s)
        for resolution in self._resolutions:
            yield f"counting {self._source.name} at {resolution}"
            try:
                self._rows.append(_row(self._formula, resolution))
            except Exception as error:
                self._failed[str(resolution)] = (str(error).strip() or type(error).__name__).splitlines()[0]

    def result(self) -> FormulaResult | None:
        """Everything that is finished by now; None before the formula is."""
        if self._formula is None:
            return None
        recordings = [row.recording for row in self._rows]
        return FormulaResult(self._command, self._formula, tuple(self._rows), self._failed, _coverage(recordings))


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
    )


def _counts(formula: ModelFormula, resolution: Resolution) -> tuple[list[Count], dict[str, str]]:
    """What the counters find on the meta device, and why one found nothing."""
    counts: list[Count] = []
    missing: dict[str, str] = {}
    try:
        model = _on_meta(formula, resolution)
    except Exception as error:
        return [], dict.fromkeys((flop_counter.NAME, fvcore_counter.NAME), _reason(error))
    shape = formula.shape.at(resolution.height, resolution.width)
    image = torch.empty(shape, dtype=getattr(torch, formula.dtype), device="meta")

    asks: dict[str, Callable[[], Count]] = {
        flop_counter.NAME: lambda: flop_counter.count_step(lambda: _forward(model, image)),
        fvcore_counter.NAME: lambda: fvcore_counter.count_module(model, image),
    }
    for name, ask in asks.items():
        try:
            counts.append(ask())
        except Exception as error:
            missing[name] = _reason(error)
    return counts, missing


def _forward(model: nn.Module, image: Tensor) -> None:
    with torch.no_grad():
        model(image)


def _on_meta(formula: ModelFormula, resolution: Resolution) -> nn.Module:
    """The model without data, by way of real weights where its constructor looks at numbers."""
    size = resolution if formula.sized else None
    try:
        with torch.device("meta"):
            model = formula.source.build(size)
    except Exception:
        model = formula.source.build(size)
    # the module may be the user's own object, which keeps its weights
    return copy.deepcopy(model).to(device="meta", dtype=getattr(torch, formula.dtype))


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _coverage(recordings: Sequence[Recording]) -> Coverage:
    calls = [call for recording in recordings for call in recording.calls]
    moved = sum(call.read_bytes + call.written_bytes for call in calls)
    known = sum(call.read_bytes + call.written_bytes for call in calls if call.kind)
    return Coverage(known / moved if moved else 1.0, tuple(sorted({call.operator for call in calls if not call.kind})))
