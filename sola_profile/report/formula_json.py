"""A model's formula as JSON: every polynomial with exact coefficients, every count of every witness.

``schema_version`` rises when a field changes its meaning or goes; new fields may come at any time. Polynomials are lists
of ``{"h": power, "w": power, "coefficient": exact text}`` in h = H/stride and w = W/stride.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sympy.polys.rings import PolyElement

from sola_profile.compare.formula_check import Check
from sola_profile.cost.recording import Call
from sola_profile.cost.symbolic import ModelFormula, Totals
from sola_profile.cost.work import PRODUCT_KINDS, Size
from sola_profile.formula_result import FormulaResult, SizeRow
from sola_profile.memory import PeakMemory
from sola_profile.report.formula_tables import expressions, groups, latex
from sola_profile.report.json_parts import Json, dump
from sola_profile.report.numbers import polynomial_text

SCHEMA_VERSION = 1


def json_text(result: FormulaResult) -> str:
    """The document with one field to a line."""
    return dump(document(result))


def document(result: FormulaResult) -> Json:
    """The document as plain dicts and lists."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": result.command,
        "model": _model(result.formula),
        "formulas": {name: polynomial_text(expression) for name, expression in expressions(result).items()},
        "latex": latex(result) if result.formula.recording is not None else None,
        "polynomials": None if result.formula.total is None else _totals(result.formula.total),
        "by_kind": None
        if result.formula.recording is None
        else {name: _totals(totals) for name, totals in groups(result, "kind", 1).items()},
        "calls": None if result.formula.recording is None else [_call(call) for call in result.formula.recording.calls],
        "sizes": [_size(row) for row in result.rows],
        "failed": dict(result.failed),
        "coverage": {"share": result.coverage.share if result.rows else None, "unknown": list(result.coverage.unknown)},
        "memory": _memory_formula(result),
        "product_kinds": list(PRODUCT_KINDS),
    }


def _memory_formula(result: FormulaResult) -> Json | None:
    recording, fit = result.formula.recording, result.fit
    if recording is None or not recording.moments:
        return None
    largest = None
    if fit is not None:
        side = None if fit.resolution is None else fit.resolution.height
        largest = {
            "limit_bytes": fit.limit_bytes,
            "largest_square_side": side,
            "predicted_memory": _peak(fit.memory),
            "measured_memory": _peak(fit.measured_memory),
        }
    return {
        "parameter_bytes": recording.static_bytes,
        "input_bytes": _number(recording.input_bytes),
        "step_bytes_is_the_highest_of": [{"at": place, "bytes": _number(size)} for place, size in recording.moments],
        "fits": largest,
    }


def _peak(peak: PeakMemory | None) -> Json | None:
    return None if peak is None else {**asdict(peak), "total_bytes": peak.total_bytes}


def _model(formula: ModelFormula) -> Json:
    return {
        "name": formula.source.name,
        "source": formula.source.kind,
        "input": str(formula.shape),
        "dtype": formula.dtype,
        "route": formula.route,
        "why": formula.why,
        "stride": formula.stride,
        "built_per_size": formula.sized,
        "square_only": formula.square,
        "took_s": formula.took_s,
        "parameters": None if formula.recording is None else formula.recording.parameters,
        "first_patch": None if formula.recording is None else formula.recording.patch,
    }


def _number(quantity: Size) -> Any:
    """A polynomial as its terms, a plain number as it is."""
    if not isinstance(quantity, PolyElement):
        return int(quantity)
    return [{"h": a, "w": b, "coefficient": str(coefficient)} for (a, b), coefficient in quantity.terms()]


def _totals(totals: Totals) -> Json:
    return {
        "macs": _number(totals.macs),
        "scalar_ops": {name: _number(value) for name, value in totals.scalar_ops.items()},
        "read_bytes": _number(totals.read_bytes),
        "written_bytes": _number(totals.written_bytes),
    }


def _call(call: Call) -> Json:
    return {
        "operator": call.operator,
        "module": call.module,
        "kind": call.kind,
        "calls": call.number,
        "macs": _number(call.work.macs),
        "scalar_ops": {name: _number(value) for name, value in call.work.scalar_ops.items()},
        "read_bytes": _number(call.read_bytes),
        "written_bytes": _number(call.written_bytes),
    }


def _size(row: SizeRow) -> Json:
    return {
        "height": row.resolution.height,
        "width": row.resolution.width,
        "from_formula": row.from_formula,
        "flops": 2 * row.totals.macs,
        **_totals(row.totals),
        "witnesses": [_check(check) for check in row.checks],
        "missing": dict(row.missing),
        "predicted_memory": _peak(row.memory),
        "measured_memory": _peak(row.measured_memory),
        "unmeasured": row.unmeasured,
    }


def _check(check: Check) -> Json:
    return {**asdict(check), "residuals": check.residuals, "contradicted_by": list(check.contradicted_by)}
