"""A profile as charts: black on white wherever they are shown, and readable without colour.

Every series has its own shape and dash and is named where it ends, so colour only helps. The same profile gives the
same bytes. Charts are Vega-Lite specs as plain dicts; ``tests/test_report.py`` holds them against its schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sola_profile.report.bar_charts import memory_chart, shares_chart
from sola_profile.report.memory_chart import timeline_chart
from sola_profile.report.numbers import duration, duration_interval, significant
from sola_profile.report.roofline_chart import roofline_chart
from sola_profile.report.scaling_chart import Point, Series, scaling_chart, styles
from sola_profile.result import Contender, Profile, Row

Spec = dict[str, Any]

STYLE: Spec = {
    "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
    "background": "white",
    "padding": 14,
    "config": {
        "font": "Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "axis": {
            "gridColor": "#E3E5E8",
            "domainColor": "#444444",
            "tickColor": "#444444",
            "labelColor": "#222222",
            "titleColor": "#222222",
        },
        "title": {
            "anchor": "start",
            "color": "#111111",
            "fontSize": 14,
            "subtitleColor": "#444444",
            "subtitleFontSize": 11.5,
        },
        "text": {"color": "#222222"},
        "legend": {"labelColor": "#222222", "titleColor": "#222222"},
    },
}


def specs(profile: Profile) -> dict[str, Spec]:
    """File name → Vega-Lite spec; charts without data are left out."""
    drawn = {name: draw(profile) for name, draw in CHARTS.items()}
    return {name: {**STYLE, **chart} for name, chart in drawn.items() if chart is not None}


def _latency(profile: Profile) -> Spec | None:
    fit = profile.model.scaling.latency_fit
    found = _series(profile, _latency_point)
    if not found[0].points:
        return None
    if fit is not None:
        found[0] = replace(found[0], curve=lambda tokens: 1e3 * fit(tokens))
    what = "curve: fit of a·N² + b·N + c to the model" if fit is not None else "too few sizes for a fit"
    subtitle = f"median with 95 % interval; {what}; both axes logarithmic"
    return scaling_chart(profile, found, "Latency (ms)", {"text": "Measured latency", "subtitle": subtitle})


def _series(profile: Profile, point: Callable[[int, Row], Point | None]) -> list[Series]:
    """Points of all models over the tokens that the first one has at the same size."""
    tokens = {row.resolution: row.tokens for row in profile.model.rows}
    found = []
    for contender, style in zip(profile.contenders, styles(profile.contenders), strict=True):
        points = [point(tokens[row.resolution], row) for row in contender.rows if row.resolution in tokens]
        found.append(Series(contender, [entry for entry in points if entry is not None], style))
    return found


def _latency_point(tokens: int, row: Row) -> Point | None:
    if row.latency is None:
        return None
    interval = row.latency.interval_s
    text = f"{duration(row.latency.median_s)}, 95 % interval {duration_interval(interval)}"
    return Point(tokens, 1e3 * row.latency.median_s, 1e3 * interval.low, 1e3 * interval.high, str(row.resolution), text)


def _flops_point(tokens: int, row: Row) -> Point | None:
    if not row.cost.macs:
        return None
    flops = 2 * row.cost.macs
    return Point(tokens, flops / 1e9, size=str(row.resolution), text=significant(flops / 1e9, 4))


def _flops(profile: Profile) -> Spec | None:
    found = [
        replace(series, curve=_flops_curve(series.contender, profile)) for series in _series(profile, _flops_point)
    ]
    if not found[0].points:
        return None
    title = {
        "text": "FLOPs of the forward pass",
        "subtitle": f"{profile.model.rows[0].cost.origin}, 1 MAC = 2 FLOPs; both axes logarithmic",
    }
    complexity = profile.model.scaling.complexity
    crossing = None
    if complexity is not None and complexity.softmax_overtakes is not None:
        crossing = (complexity.softmax_overtakes, "softmax layers overtake the rest")
    return scaling_chart(profile, found, "GFLOPs", title, crossing)


def _flops_curve(contender: Contender, profile: Profile) -> Callable[[float], float] | None:
    """GFLOPs over the tokens of the first model."""
    if contender.scaling.complexity is None:
        return None
    total, batch = contender.scaling.complexity.total, profile.settings.batch
    own = (profile.model.patch / contender.patch) ** 2
    return lambda tokens: 2e-9 * batch * float(total(round(own * tokens)))


# file name → what draws it
CHARTS: Mapping[str, Callable[[Profile], Spec | None]] = {
    "latency.svg": _latency,
    "flops.svg": _flops,
    "shares.svg": shares_chart,
    "roofline.svg": roofline_chart,
    "memory.svg": memory_chart,
    "timeline.svg": timeline_chart,
}
