"""A placement as a folder: a Markdown page, its chart and its JSON."""

from __future__ import annotations

from pathlib import Path

from sola_profile.report.markdown import environment_table, markdown, template
from sola_profile.report.placement import headline, part_table, sentences, tables, usage
from sola_profile.report.placement_chart import placement_chart
from sola_profile.report.placement_json import placement_json
from sola_profile.report.svg import DrawingError, Renderer
from sola_profile.study.placement import Placement

PAGE, CHART, RESULT = "README.md", "placement.svg", "placement.json"


def write_placement(placement: Placement, folder: Path, renderer: Renderer) -> str:
    """Write the folder; returns why there is no chart, or an empty string."""
    (folder / RESULT).write_text(placement_json(placement), encoding="utf-8")
    spec, problem, drawn = placement_chart(placement), "", False
    if spec is not None:
        try:
            (folder / CHART).write_text(renderer.draw({CHART: spec})[CHART], encoding="utf-8")
            drawn = True
        except DrawingError as error:
            problem = str(error)
    if not drawn:
        (folder / CHART).unlink(missing_ok=True)
    (folder / PAGE).write_text(page(placement, CHART if drawn else ""), encoding="utf-8")
    return problem


def page(placement: Placement, chart: str) -> str:
    """The page; ``chart``: the file of the chart, empty without one."""
    return template("placement.md.j2").render(
        title=placement.question.spec.name,
        headline=headline(placement),
        command=placement.question.command,
        chart=chart,
        result=RESULT,
        sentences=[sentence.replace("|", "\\|") for sentence in sentences(placement)],
        usage=list(usage(placement)),
        tables=[(table.title, markdown(table)) for table in tables(placement)],
        parts=markdown(part_table(placement)) if placement.parts else "",
        environment=markdown(environment_table(placement.environment)),
    )
