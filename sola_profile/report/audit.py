"""An audit as a table, a page and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sola_profile.audit import AGREES, OTHER_MODEL, UNEXPLAINED, Audited, Figure, Source
from sola_profile.report.json_parts import Json, dump
from sola_profile.report.markdown import markdown, template
from sola_profile.report.numbers import signed_percent, significant
from sola_profile.report.tables import Table

SCHEMA_VERSION = 1


def audit_table(rows: Sequence[Audited]) -> Table:
    """One line per published figure."""
    cells = tuple(
        (
            row.figure.model,
            row.figure.size,
            row.figure.source,
            row.figure.gmacs,
            significant(row.macs / 1e9, 4),
            signed_percent(row.residual),
            row.explanation,
            _parameters(row),
        )
        for row in rows
    )
    columns = ("Model", "Size", "Source", "Published GMACs", "Ours", "Residual", "Explanation", "Parameters (M)")
    return Table("Published and counted", columns, cells, frozenset({"Model", "Source", "Explanation"}))


def _parameters(row: Audited) -> str:
    ours = significant(row.parameters / 1e6, 4)
    if row.parameters_agree is None:
        return ours
    return f"{ours}, agrees" if row.parameters_agree else f"{ours}, published {row.figure.params_m}"


def summary(rows: Sequence[Audited]) -> str:
    """How many agree, are explained, or aren't."""
    agree = sum(row.explanation == AGREES for row in rows)
    open_rows = [row for row in rows if row.explanation == UNEXPLAINED]
    others = [row for row in rows if row.explanation == OTHER_MODEL]
    explained = len(rows) - agree - len(others) - len(open_rows)
    text = f"{len(rows)} published figures: {agree} agree, {explained} differ by what their counter sees, "
    if others:
        text += f"{len(others)} are of models whose parameters differ from ours, "
    if not open_rows:
        return text + "none is unexplained."
    worst = max(open_rows, key=lambda row: abs(row.residual))
    return f"{text}{len(open_rows)} are unexplained, by up to {signed_percent(worst.residual)} ({worst.figure.model})."


def audit_page(
    rows: Sequence[Audited], failed: Mapping[Figure, str], sources: Mapping[str, Source], command: str
) -> str:
    """The whole page."""
    return template("audit.md.j2").render(
        command=command,
        summary=summary(rows),
        table=markdown(audit_table(rows)),
        failed=[(figure.model, figure.size, reason) for figure, reason in failed.items()],
        sources={name: source for name, source in sources.items() if any(row.figure.source == name for row in rows)},
    )


def audit_json(rows: Sequence[Audited], failed: Mapping[Figure, str], command: str) -> str:
    """Everything in plain units."""
    document: Json = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "rows": [{**asdict(row.figure), **{k: v for k, v in asdict(row).items() if k != "figure"}} for row in rows],
        "failed": [{**asdict(figure), "reason": reason} for figure, reason in failed.items()],
    }
    return dump(document)
