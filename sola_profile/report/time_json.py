"""Predicted times as JSON: every size with every operator call's time, and what was measured.

``schema_version`` rises when a field changes its meaning or goes; new fields may come at any time. Times are in seconds;
an interval is [low, high]. ``interval_s`` is the scatter of the ceilings, ``prediction_interval_s`` what holds measured times.
"""

from __future__ import annotations

from dataclasses import asdict

from sola_profile.cost.roofline import CallTime
from sola_profile.hardware import Machine
from sola_profile.report.json_parts import Json, dump, latency_json, span_json
from sola_profile.time_result import ModelTimes, TimeResult, TimeRow

SCHEMA_VERSION = 1


def json_text(result: TimeResult, *, calls: bool = True) -> str:
    """The document with one field to a line; without ``calls`` a hundredth as long."""
    return dump(document(result, calls=calls))


def document(result: TimeResult, *, calls: bool = True) -> Json:
    """The document as plain dicts and lists."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": result.command,
        "machine": _machine(result.machine),
        "input": result.shape,
        "threads": result.threads,
        "load_1min": result.load_1min,
        "interrupted": result.interrupted,
        "median_absolute_error": result.median_absolute_error,
        "known": [asdict(each) for each in result.known],
        "models": [_model(model, calls) for model in result.models],
    }


def _machine(machine: Machine) -> Json:
    """The machine without its rates, which ``sola-profile machine --json`` writes."""
    return {
        "name": machine.name,
        "measured": machine.measured,
        "measured_at": machine.measured_at,
        "device": machine.device,
        "dtype": machine.dtype,
        "threads": machine.threads,
        "fingerprint": dict(machine.fingerprint),
    }


def _model(model: ModelTimes, calls: bool) -> Json:
    return {
        "name": model.name,
        "parameters": model.parameters,
        "factor": model.factor,
        "sizes": [_row(model, row, calls) for row in model.rows],
        "failed": dict(model.failed),
        "bounds": [
            {
                "kind": turn.kind,
                "by_size": {str(size): bound for size, bound in turn.bounds.items()},
                "compute_bound_from": None if turn.compute_from is None else str(turn.compute_from),
            }
            for turn in model.turns
        ],
    }


def _row(model: ModelTimes, row: TimeRow, calls: bool) -> Json:
    interval = model.interval_s(row)
    return {
        "height": row.resolution.height,
        "width": row.resolution.width,
        "predicted": span_json(row.predicted.total),
        "prediction_interval_s": None if interval is None else [interval.low, interval.high],
        "views_and_modules": span_json(row.predicted.rest),
        "bound_shares": dict(row.predicted.shares),
        "uncounted": list(row.predicted.uncounted),
        "calls": [_call(call) for call in row.predicted.calls] if calls else [],
        "latency": None if row.latency is None else latency_json(row.latency),
        "error": row.error,
        "module_times_s": None if row.module_times is None else dict(row.module_times),
        "missing": row.missing,
    }


def _call(time: CallTime) -> Json:
    place = time.call.place
    return {
        "operator": time.call.operator,
        "module": time.call.module,
        "kind": time.call.kind,
        "family": None if place is None else place.family,
        "shape": None if place is None else dict(place.shape),
        "macs": time.call.work.macs,
        "bound": time.bound,
        "time_s": time.time.middle,
        "interval_s": [time.time.low, time.time.high],
        "compute_s": time.compute.middle,
        "traffic_s": time.traffic.middle,
        "first_touch_s": time.first_touch.middle,
        "overhead_s": time.overhead.middle,
        "like": time.like,
        "uncounted": time.uncounted,
    }
