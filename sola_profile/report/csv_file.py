"""A profile as CSV: one line per backbone and size, units in the column names, empty where there is no value."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from sola_profile.report.numbers import missing_text
from sola_profile.result import Contender, Profile, Row

Cells = dict[str, Any]


def csv_text(profile: Profile) -> str:
    """All lines, with a header."""
    kinds = list(dict.fromkeys(k for contender in profile.contenders for row in contender.rows for k in row.cost.kinds))
    lines = [
        {**_case(profile, contender, row), **_cost(row, kinds), **_memory(row), **_latency(row)}
        for contender in profile.contenders
        for row in contender.rows
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _case(profile: Profile, contender: Contender, row: Row) -> Cells:
    settings = profile.settings
    return {
        "role": contender.role,
        "model": contender.name,
        "pattern": None if contender.spec is None else contender.spec.pattern,
        "height": row.resolution.height,
        "width": row.resolution.width,
        "batch": settings.batch,
        "dtype": settings.dtype,
        "device": settings.device,
        "mode": settings.mode,
        "compiled": settings.compile,
        "threads": profile.environment.threads,
        "stage1_tokens": row.tokens,
    }


def _cost(row: Row, kinds: Sequence[str]) -> Cells:
    macs = row.cost.macs_by_kind
    return {
        "parameters": row.cost.parameters,
        "macs": row.cost.macs,
        "flops": 2 * row.cost.macs,
        **{f"macs_{kind.replace(' ', '_')}": macs.get(kind) for kind in kinds},
        "scalar_ops": sum(row.cost.scalar_ops.values()),
        "witnesses_agree": None if row.agreement is None else row.agreement.exact,
        "training_step_macs": row.step_macs,
    }


def _memory(row: Row) -> Cells:
    predicted, measured = row.predicted_memory, row.measured_memory
    return {
        "predicted_optimizer_bytes": predicted.optimizer_bytes,
        "predicted_gradient_bytes": predicted.gradient_bytes,
        "predicted_step_bytes": predicted.step_bytes,
        "predicted_total_bytes": predicted.total_bytes,
        "measured_step_bytes": None if measured is None else measured.step_bytes,
        "measured_total_bytes": None if measured is None else measured.total_bytes,
    }


def _latency(row: Row) -> Cells:
    latency = row.latency
    return {
        "latency_median_s": None if latency is None else latency.median_s,
        "latency_low_s": None if latency is None else latency.interval_s.low,
        "latency_high_s": None if latency is None else latency.interval_s.high,
        "samples": None if latency is None else len(latency.samples_s),
        "unstable": None if latency is None else latency.unstable,
        "missing": None if row.missing is None else missing_text(row.missing),
    }
