"""The ratios of a kernel report as one picture: a block per operator, a row per shape, a column per mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import Any

from sola_profile.compare.ratios import Ratio
from sola_profile.kernel_case import KERNEL_MODES
from sola_profile.kernel_result import KernelReport, KernelRow
from sola_profile.report.charts import STYLE
from sola_profile.report.kernel_tables import groups

Spec = dict[str, Any]

WIDTH = 300
ROW_HEIGHT = 24
MOST_FINE_DECADES = 2.5
GUIDE = "#444444"

# peer → colour after Okabe and Ito, and shape, so that colour only helps
PEER_STYLES: Mapping[str, tuple[str, str]] = {
    "SDPA": ("#D55E00", "square"),
    "eager": ("#0072B2", "circle"),
    "PyTorch": ("#0072B2", "square"),
    "masked": ("#CC79A7", "diamond"),
    "chunked": ("#E69F00", "triangle-up"),
    "cumsum": ("#56B4E9", "triangle-down"),
    "loop": ("#000000", "cross"),
    "compile": ("#009E73", "triangle-right"),
}


def ratio_chart(report: KernelReport) -> Spec | None:
    """Time of every peer over ours with the most threads; None when no row has a ratio."""
    threads = max((row.case.threads for row in report.rows), default=0)
    drawn = [
        (op, mode, points)
        for op, mode, rows in groups(report)
        if (points := [point for row in rows if row.case.threads == threads for point in _points(row)])
    ]
    if not drawn:
        return None
    modes = [mode for mode in KERNEL_MODES if mode in {mode for _, mode, _ in drawn}]
    values = [bound for _, _, points in drawn for point in points for bound in (point["low"], point["high"], 1.0)]
    domain = (min(values) / 1.15, max(values) * 1.15)
    names = [name for name in PEER_STYLES if any(point["peer"] == name for _, _, points in drawn for point in points)]
    blocks = []
    for op in dict.fromkeys(op for op, _, _ in drawn):
        found = {mode: points for name, mode, points in drawn if name == op}
        shapes = list(dict.fromkeys(point["shape"] for points in found.values() for point in points))
        panels = [
            _panel(found.get(mode, []), shapes, domain, names, f"{op}, {mode}", first=mode == modes[0])
            for mode in modes
        ]
        blocks.append({"hconcat": panels, "spacing": 24})
    count = "1 thread" if threads == 1 else f"{threads} threads"
    title = {
        "text": "Time of PyTorch's routes over ours",
        "subtitle": f"right of the line ours is faster; {count}; filled: float32, hollow: bfloat16; bars: 95 % intervals",
    }
    shared = {"scale": {"color": "shared", "shape": "shared"}}
    return {**STYLE, "title": title, "vconcat": blocks, "spacing": 18, "resolve": shared}


def _points(row: KernelRow) -> list[Spec]:
    return [
        {
            "shape": str(row.case.shape),
            "peer": peer.name,
            "filled": row.case.dtype == "float32",
            # four digits are what a chart can show
            **{key: float(f"{value:.4g}") for key, value in _ends(peer.ratio).items()},
        }
        for peer in row.peers
        if peer.ratio is not None and peer.name in PEER_STYLES
    ]


def _ends(ratio: Ratio) -> dict[str, float]:
    low, high = (ratio.interval.low, ratio.interval.high) if ratio.interval else (ratio.value, ratio.value)
    return {"ratio": ratio.value, "low": low, "high": high}


def _panel(
    points: Sequence[Spec],
    shapes: Sequence[str],
    domain: tuple[float, float],
    names: Sequence[str],
    title: str,
    *,
    first: bool,
) -> Spec:
    axis = {"values": _ticks(*domain), "labelExpr": "format(datum.value, ',~r') + ' ×'", "title": None}
    scale = {"type": "log", "domain": [float(f"{end:.4g}") for end in domain], "nice": False}
    y_axis = {"title": None, "ticks": False, "domain": False, "grid": True, "labels": first, "labelFontSize": 11}
    y = {"field": "shape", "type": "nominal", "sort": list(shapes), "scale": {"domain": list(shapes)}, "axis": y_axis}
    x = {"field": "ratio", "type": "quantitative", "scale": scale, "axis": axis}
    colors = {"domain": list(names), "range": [PEER_STYLES[name][0] for name in names]}
    forms = {"domain": list(names), "range": [PEER_STYLES[name][1] for name in names]}
    legend = {"title": None, "orient": "bottom", "symbolSize": 80}
    offset = {"field": "filled", "type": "nominal", "sort": [True, False], "scale": {"domain": [True, False]}}
    shared = {
        "y": y,
        "yOffset": offset,
        "color": {"field": "peer", "type": "nominal", "scale": colors, "legend": legend},
    }
    dots = {
        "mark": {"type": "point", "size": 52, "strokeWidth": 1.6, "opacity": 1},
        "encoding": {
            **shared,
            "x": x,
            "shape": {"field": "peer", "type": "nominal", "scale": forms, "legend": legend},
            "fill": {"field": "peer", "type": "nominal", "scale": colors, "legend": None},
            "fillOpacity": {"condition": {"test": "datum.filled", "value": 1}, "value": 0},
        },
    }
    bars = {
        "mark": {"type": "rule", "strokeWidth": 1.4},
        "encoding": {**shared, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
    }
    even = {"data": {"values": [{"one": 1}]}, "mark": {"type": "rule", "color": GUIDE, "strokeWidth": 1.4}}
    even["encoding"] = {"x": {"field": "one", "type": "quantitative", "scale": scale}}
    return {
        "width": WIDTH,
        "height": ROW_HEIGHT * len(shapes),
        "title": {"text": title, "fontSize": 12, "anchor": "start"},
        "data": {"values": list(points)},
        "layer": [even, bars, dots],
    }


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between two values, or 1, 10, 100, … where these would be too many."""
    digits = (1, 2, 5) if log10(high / low) < MOST_FINE_DECADES else (1,)
    marks = [
        float(f"{digit}e{decade}") for decade in range(floor(log10(low)), floor(log10(high)) + 1) for digit in digits
    ]
    return [mark for mark in marks if low <= mark <= high]
