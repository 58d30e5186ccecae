"""Lines over the layers of a model, one per image size; softmax layers are squares on grey lines."""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]

PANEL_WIDTH, PANEL_HEIGHT = 250, 150
# after Okabe and Ito; sizes also differ in their dashes
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [10, 4], [4, 4], [1, 3])
GUIDE = "#9A9A9A"
MANY = 1e4


def pick(series: list[str], choices: tuple[Any, ...]) -> Spec:
    """A scale that gives each of a series its own, from the start again where there are more."""
    return {"domain": series, "range": [choices[number % len(choices)] for number in range(len(series))]}


def layer_value(layer: str, size: str, value: float, is_softmax: bool) -> Spec:
    """A point of such a panel."""
    kind = "softmax" if is_softmax else "linear"
    return {"layer": layer, "size": size, "value": float(f"{value:.5g}"), "kind": kind}


def layer_curves(values: list[Spec], order: list[str], sizes: list[str], title: str, scale: Spec) -> Spec:
    """A panel of lines over layers, one per image size; ``order``: of the layers."""
    x = {"field": "layer", "type": "ordinal", "sort": order, "axis": {"title": None, "labelAngle": -90}}
    axis: Spec = {"title": None, "tickCount": 5}
    if scale.get("type") == "log":
        shown = [value["value"] for value in values]
        # many powers of ten are read by their exponents
        axis["format"] = "~e" if shown and max(shown) > MANY * min(shown) else "~g"
    y = {"field": "value", "type": "quantitative", "scale": scale, "axis": axis}
    color = pick(sizes, COLORS)
    # one legend of lines for colours and dashes
    legend = {"title": "pixels", "orient": "top", "symbolType": "stroke", "symbolStrokeWidth": 2, "symbolSize": 300}
    series = {"field": "size", "type": "nominal", "scale": color, "legend": legend, "sort": None}
    dash: Spec = {"field": "size", "type": "nominal", "legend": legend, "sort": None}
    dash["scale"] = pick(sizes, DASHES)
    shape: Spec = {"field": "kind", "type": "nominal", "legend": None}
    shape["scale"] = {"domain": ["linear", "softmax"], "range": ["circle", "square"]}
    marked = [{"layer": name} for name in dict.fromkeys(v["layer"] for v in values if v["kind"] == "softmax")]
    rule = {"data": {"values": marked}, "mark": {"type": "rule", "color": GUIDE, "opacity": 0.5}, "encoding": {"x": x}}
    line: Spec = {"mark": {"type": "line", "strokeWidth": 1.6}, "encoding": {"strokeDash": dash}}
    shown = [{"field": field} for field in ("layer", "size", "value")]
    dots: Spec = {
        "mark": {"type": "point", "filled": True, "size": 42, "opacity": 1},
        "encoding": {"shape": shape, "tooltip": shown},
    }
    layers = [
        {**layer, "data": {"values": values}, "encoding": {"x": x, "y": y, "color": series, **layer["encoding"]}}
        for layer in (line, dots)
    ]
    return {
        "width": PANEL_WIDTH,
        "height": PANEL_HEIGHT,
        "title": {"text": title, "fontSize": 12},
        "layer": [rule, *layers],
    }
