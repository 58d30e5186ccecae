"""A kernel report as a Markdown page with its picture beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sola_profile.kernel_result import KernelReport
from sola_profile.report.kernel_chart import ratio_chart
from sola_profile.report.kernel_tables import (
    backend_table,
    busy_sentence,
    ceiling_table,
    crossover_table,
    descriptions,
    groups,
    headline,
    meaning,
    model_remarks,
    model_table,
    remarks,
    share_table,
    speed_table,
    summary_table,
)
from sola_profile.report.markdown import environment_table, markdown, template
from sola_profile.report.svg import DrawingError, Renderer


def write_kernel_page(
    report: KernelReport, folder: Path, name: str, renderer: Renderer, others: Sequence[str] = ()
) -> str:
    """Write ``NAME.md`` and ``NAME.svg``; ``others`` are files in the folder that the page should name.

    Returns why there is no picture, or an empty string; a picture of an earlier run is removed then.
    """
    problem, picture = "", folder / f"{name}.svg"
    spec = ratio_chart(report)
    drawn: dict[str, str] = {}
    try:
        drawn = renderer.draw({picture.name: spec}) if spec is not None else {}
    except DrawingError as error:
        problem = str(error)
    if drawn:
        picture.write_text(drawn[picture.name], encoding="utf-8")
    else:
        picture.unlink(missing_ok=True)
    (folder / f"{name}.md").write_text(page_text(report, next(iter(drawn), ""), others), encoding="utf-8")
    return problem


def page_text(report: KernelReport, chart: str, others: Sequence[str]) -> str:
    """The page itself, without writing anything; ``chart``: file of the picture, or an empty string."""
    text = template("kernels.md.j2").render(
        headline=headline(report),
        busy=busy_sentence(report),
        command=report.command,
        interrupted=report.interrupted,
        environment=report.environment,
        chart=chart,
        summary=markdown(summary_table(report)),
        ceilings=markdown(ceiling_table(report)),
        backends=markdown(backend_table(report)),
        operators=_operators(report),
        crossovers=markdown(crossover_table(report)) if report.crossovers else "",
        width=report.crossovers[0].heads * report.crossovers[0].dim if report.crossovers else 0,
        models=markdown(model_table(report)) if report.models else "",
        model_remarks=list(model_remarks(report)),
        environment_table=markdown(environment_table(report.environment)),
        artefacts=", ".join(f"[`{name}`]({name})" for name in others),
    )
    # what is left out leaves empty lines behind
    return re.sub(r"\n{3,}", "\n\n", text)


def _operators(report: KernelReport) -> list[dict[str, Any]]:
    """What the page says of every operator: what it computes, its routes, and two tables for each mode."""
    found: dict[str, dict[str, Any]] = {}
    for op, mode, rows in groups(report):
        about = {"name": op, "meaning": meaning(op), "routes": descriptions(rows), "modes": []}
        entry = found.setdefault(op, about)
        entry["modes"].append(
            {
                "name": mode,
                "speed": markdown(speed_table(op, mode, rows)),
                "remarks": list(remarks(rows)),
                "shares": markdown(share_table(report, op, mode, rows)),
            }
        )
    return list(found.values())
