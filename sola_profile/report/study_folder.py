"""A study as a folder: a Markdown page, its charts and its JSON."""

from __future__ import annotations

from pathlib import Path

from sola_profile.report.markdown import environment_table, markdown, template
from sola_profile.report.study import depth_table, headline, matrix_table, mean_table, rank_table, sentences
from sola_profile.report.study_charts import study_charts
from sola_profile.report.study_json import study_json
from sola_profile.report.study_reach import decay_table, exponent_table, of_variants, reach_table, stack_table
from sola_profile.report.svg import DrawingError, Renderer
from sola_profile.report.tables import Table
from sola_profile.study.study_result import Study

PAGE, RESULT = "README.md", "study.json"
# the charts of an earlier study that this one may not have
CHARTS = ("depth.svg", "maps-*.svg", "cka-*.svg", "reach.svg", "exponent.svg", "kernel.svg")


def write_study(study: Study, folder: Path, renderer: Renderer) -> str:
    """Write the folder; returns why there are no charts, or an empty string."""
    (folder / RESULT).write_text(study_json(study), encoding="utf-8")
    problem, drawn = "", {}
    try:
        drawn = renderer.draw(study_charts(study))
    except DrawingError as error:
        problem = str(error)
    for old in (path for pattern in CHARTS for path in folder.glob(pattern)):
        if old.name not in drawn:
            old.unlink()
    for name, text in drawn.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / PAGE).write_text(page(study, set(drawn)), encoding="utf-8")
    return problem


def page(study: Study, charts: set[str]) -> str:
    """The page; ``charts``: the files that were drawn."""
    variants = of_variants(study)
    sizes = [
        {
            "name": str(size.resolution),
            "tables": [
                _part(table) for table in (matrix_table(study, size), mean_table(size), rank_table(size)) if table.rows
            ],
            "depth": _part(depth_table(study, size)) if size.depths else (),
        }
        for size in study.sizes
    ]
    return template("study.md.j2").render(
        title=study.question.model.spec.name.replace("|", "\\|"),
        headline=headline(study).replace("|", "\\|"),
        command=study.question.command,
        result=RESULT,
        sentences=[sentence.replace("|", "\\|") for sentence in sentences(study)],
        charts=charts,
        sizes=sizes,
        reaches=[_part(reach_table(variant, found)) for variant, found in variants.items()],
        exponents=[_part(exponent_table(variant, found)) for variant, found in variants.items()],
        stacks=[_part(stack_table(each, linear=linear)) for each in study.horizons for linear in (False, True)],
        decays=[_part(decay_table(each)) for each in study.horizons if each.decays],
        environment=markdown(environment_table(study.environment)),
    )


def _part(table: Table) -> tuple[str, str]:
    return table.title.replace("|", "\\|"), markdown(table)
