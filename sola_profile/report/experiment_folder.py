"""An experiment as a folder: a Markdown page and its chart, beside the raw results."""

from __future__ import annotations

from pathlib import Path

from sola_profile.files import replace_text
from sola_profile.report.experiment import contest_table, paper_table, sentences
from sola_profile.report.experiment_chart import experiment_chart
from sola_profile.report.markdown import environment_table, markdown, template
from sola_profile.report.svg import DrawingError, Renderer
from sola_profile.study.experiment import Experiment

PAGE, CHART, RUNS = "README.md", "accuracy.svg", "runs.csv"


def write_experiment(experiment: Experiment, folder: Path, renderer: Renderer) -> str:
    """Write the page and its chart; returns why there is no chart, or an empty string."""
    spec, problem, drawn = experiment_chart(experiment), "", False
    if spec is not None:
        try:
            replace_text(folder / CHART, renderer.draw({CHART: spec})[CHART])
            drawn = True
        except DrawingError as error:
            problem = str(error)
    if not drawn:
        (folder / CHART).unlink(missing_ok=True)
    replace_text(folder / PAGE, page(experiment, CHART if drawn else ""))
    return problem


def page(experiment: Experiment, chart: str) -> str:
    """The page; ``chart``: the file of the chart, empty without one."""
    tables = [contest_table(contest) for contest in experiment.contests] + [paper_table()]
    return template("experiment.md.j2").render(
        command=experiment.command,
        chart=chart,
        runs=RUNS,
        sentences=list(sentences(experiment)),
        tables=[(table.title, markdown(table)) for table in tables],
        missing=len(experiment.missing),
        environment=markdown(environment_table(experiment.environment)),
    )
