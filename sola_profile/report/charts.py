"""A profile as charts: black on white wherever they are shown, and readable without colour.

Every series has its own shape and dash and is named where it ends, so colour only helps. The same profile gives the
same bytes. Charts are Vega-Lite specs as plain dicts; ``tests/test_report.py`` holds them against its schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sola_profile.report.bar_charts import memory_chart, shares_chart
from sola_profile.report.scaling_chart import Point, Series, scaling_chart
from sola_profile.result import Contender, Profile

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
    },
}


def specs(profile: Profile) -> dict[str, Spec]:
    """File name → Vega-Lite spec; charts without data are left out."""
    drawn = {name: draw(profile) for name, draw in CHARTS.items()}
    return {name: {**STYLE, **chart} for name, chart in drawn.items() if chart is not None}


def _latency(profile: Profile) -> Spec | None:
    fit = profile.model.scaling.latency_fit
    found = [Series(contender, _latency_points(contender)) for contender in profile.contenders]
    if not found[0].points:
        return None
    if fit is not None:
        found[0] = replace(found[0], curve=lambda tokens: 1e3 * fit(tokens))
    what = "curve: fit of a·N² + b·N + c to the model" if fit is not None else "too few sizes for a fit"
    subtitle = f"median with 95 % interval; {what}; both axes logarithmic"
    return scaling_chart(profile, found, "Latency (ms)", {"text": "Measured latency", "subtitle": subtitle})


def _latency_points(contender: Contender) -> list[Point]:
    return [
        Point(
            row.tokens,
            1e3 * row.latency.median_s,
            1e3 * row.latency.interval_s.low,
            1e3 * row.latency.interval_s.high,
        )
        for row in contender.rows
        if row.latency is not None
    ]


def _flops(profile: Profile) -> Spec:
    found = [
        Series(
            contender,
            [Point(row.tokens, 2 * row.closed.macs / 1e9) for row in contender.rows],
            _flops_curve(contender, profile.settings.batch),
        )
        for contender in profile.contenders
    ]
    title = {
        "text": "FLOPs of the forward pass",
        "subtitle": "closed form, 1 MAC = 2 FLOPs; both axes logarithmic",
    }
    overtaken = profile.model.scaling.complexity.softmax_overtakes
    crossing = None if overtaken is None else (overtaken, "softmax layers overtake the rest")
    return scaling_chart(profile, found, "GFLOPs", title, crossing)


def _flops_curve(contender: Contender, batch: int) -> Callable[[float], float]:
    total = contender.scaling.complexity.total
    return lambda tokens: 2e-9 * batch * float(total(round(tokens)))


# file name → what draws it
CHARTS: Mapping[str, Callable[[Profile], Spec | None]] = {
    "latency.svg": _latency,
    "flops.svg": _flops,
    "shares.svg": shares_chart,
    "memory.svg": memory_chart,
}
