"""Predicted and measured times as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence

from sola_profile.measure.module_times import group_of
from sola_profile.report.markdown import markdown, template
from sola_profile.report.numbers import duration, percent, signed_percent
from sola_profile.report.tables import Table
from sola_profile.report.time_tables import (
    accuracy_sentences,
    headline,
    interval_sentences,
    time_table,
    warning_sentences,
)
from sola_profile.time_result import OTHERS, TimeResult, TimeRow, kind_of

PAGE = "README.md"
WORST = 6


def page_text(result: TimeResult, others: Sequence[str]) -> str:
    """The page; ``others`` are files beside it."""
    measured = any(row.latency or row.missing for model in result.models for row in model.rows)
    return template("time.md.j2").render(
        headline=headline(result),
        command=result.command,
        interrupted=result.interrupted,
        load=f"{result.load_1min:.2f}",
        threads=f"{result.threads} thread{'s' if result.threads > 1 else ''}",
        accuracy=list(accuracy_sentences(result)),
        warnings=list(warning_sentences(result)),
        intervals=list(interval_sentences(result)),
        models=[(model.name, markdown(time_table(model, measured))) for model in result.models if model.rows],
        worst=markdown(worst_table(result)) if result.errors else "",
        fingerprint=[f"{name}: {value}" for name, value in result.machine.fingerprint.items()],
        artefacts=", ".join(f"[`{name}`]({name})" for name in others),
    )


def worst_table(result: TimeResult) -> Table:
    """The rows that are furthest off, with the kinds of calls that take most of the predicted time there."""
    measured = [(model, row) for model in result.models for row in model.rows if row.error is not None]
    ordered = sorted(measured, key=lambda pair: -abs(pair[1].error or 0.0))
    rows = tuple(
        (
            model.name,
            str(row.resolution),
            duration(row.predicted.total.middle),
            "–" if row.latency is None else duration(row.latency.median_s),
            signed_percent(row.error or 0.0),
            _kinds(row),
            _modules(row, result.depth),
        )
        for model, row in ordered[:WORST]
    )
    columns = ("Model", "Size", "Predicted", "Measured", "Error", "Predicted by kind", "Modules furthest off")
    return Table("Furthest off", columns, rows, frozenset({"Model", "Predicted by kind", "Modules furthest off"}))


def _kinds(row: TimeRow) -> str:
    shares = {
        kind: sum(call.time.middle for call in calls) / row.predicted.total.middle
        for kind, calls in row.predicted.grouped(kind_of).items()
    }
    largest = sorted(shares, key=lambda kind: -shares[kind])[:3]
    return ", ".join(f"{'others' if kind == OTHERS else kind} {percent(shares[kind], 0)}" for kind in largest)


def _modules(row: TimeRow, depth: int) -> str:
    """The modules whose predicted and measured times differ most, in absolute time."""
    if not row.module_times:
        return ""
    groups = row.predicted.grouped(lambda call: group_of(call.module, depth))
    predicted = {name: sum(call.time.middle for call in calls) for name, calls in groups.items()}
    off = {name: predicted.get(name, 0.0) - time_s for name, time_s in row.module_times.items()}
    furthest = sorted(off, key=lambda name: -abs(off[name]))[:2]
    return ", ".join(f"{name} {'+' if off[name] > 0 else '−'}{duration(abs(off[name]))}" for name in furthest)
