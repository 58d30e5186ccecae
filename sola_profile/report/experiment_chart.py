"""An experiment as a chart: every pattern's accuracy with its interval and its seeds, the paper's beside them."""

from __future__ import annotations

from typing import Any

from sola_profile.report.charts import STYLE
from sola_profile.report.experiment import contest_name
from sola_profile.study.experiment import Contest, Experiment, paper_rows

Spec = dict[str, Any]

WIDTH, ROW_HEIGHT, COLUMNS = 240, 22, 2
# after Okabe and Ito
MEAN, SEEDS, PAPER = "#0072B2", "#56B4E9", "#D55E00"
CHANCE = "#777777"


def experiment_chart(experiment: Experiment) -> Spec | None:
    """The Vega-Lite spec; None without a finished run."""
    if not experiment.contests:
        return None
    order = [row.pattern for row in paper_rows()]
    extra = [each.pattern for contest in experiment.contests for each in contest.standings if each.pattern not in order]
    order += list(dict.fromkeys(extra))
    panels = [_contest(contest, order) for contest in experiment.contests]
    panels.append(_paper(order))
    subtitle = [
        "dot: mean over seeds, line: 95 % bootstrap interval, ticks: single seeds; paper: one run ± 1.96 standard errors",
        "dashes: chance, where some runs never left it",
    ]
    title = {"text": "Accuracy of stage-3 patterns", "subtitle": subtitle, "offset": 12}
    return {**STYLE, "title": title, "concat": panels, "columns": COLUMNS, "spacing": 24}


def _contest(contest: Contest, order: list[str]) -> Spec:
    means, seeds = [], []
    for standing in contest.standings:
        mean, interval = 100 * standing.mean, standing.interval
        low, high = (mean, mean) if interval is None else (100 * interval.low, 100 * interval.high)
        means.append({"pattern": standing.pattern, "accuracy": mean, "low": low, "high": high})
        seeds += [{"pattern": standing.pattern, "accuracy": 100 * each} for each in standing.accuracies.values()]
    ticks = {"type": "tick", "color": SEEDS, "thickness": 1.5, "size": 11}
    panel = _panel(contest_name(contest), order, [(seeds, ticks)], means, MEAN)
    if contest.unlearnt:
        panel["layer"].insert(0, _guess(100 * contest.chance))
    return panel


def _guess(chance: float) -> Spec:
    """A line where guesses are."""
    return {
        "data": {"values": [{"accuracy": chance}]},
        "mark": {"type": "rule", "color": CHANCE, "strokeDash": [3, 3]},
        "encoding": {"x": _x()},
    }


def _paper(order: list[str]) -> Spec:
    means = []
    for row in paper_rows():
        half = 196 * row.standard_error
        accuracy = 100 * row.accuracy
        means.append({"pattern": row.pattern, "accuracy": accuracy, "low": accuracy - half, "high": accuracy + half})
    return _panel("paper, ImageNet-100", order, [], means, PAPER)


def _x() -> Spec:
    axis = {"title": "accuracy (%)", "tickCount": 4, "labelOverlap": True, "labelSeparation": 6}
    return {
        "field": "accuracy",
        "type": "quantitative",
        "scale": {"zero": False, "nice": True, "padding": 4},
        "axis": axis,
    }


def _panel(name: str, order: list[str], under: list[tuple[list[Spec], Spec]], means: list[Spec], color: str) -> Spec:
    x = _x()
    y = {"field": "pattern", "type": "nominal", "sort": order, "axis": {"title": None, "labelFont": "monospace"}}
    layers = [{"data": {"values": values}, "mark": mark, "encoding": {"x": x, "y": y}} for values, mark in under]
    rule = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y}
    data = {"values": means}
    layers.append({"data": data, "mark": {"type": "rule", "color": color, "strokeWidth": 2}, "encoding": rule})
    dot = {"type": "point", "filled": True, "color": color, "size": 55, "opacity": 1}
    layers.append({"data": data, "mark": dot, "encoding": {"x": x, "y": y}})
    return {"title": {"text": name, "fontSize": 12}, "width": WIDTH, "height": {"step": ROW_HEIGHT}, "layer": layers}
