"""The roofline: what every layer should reach, over its arithmetic intensity, with its path as images grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sola_profile.report.bar_charts import KIND_COLORS
from sola_profile.report.numbers import duration, significant
from sola_profile.report.tables import shown_kinds
from sola_profile.result import LayerTime, Profile, Roofs

Spec = dict[str, Any]

WIDTH, HEIGHT = 560, 340
SHAPES: Mapping[str, str] = {
    "softmax": "square",
    "linear": "triangle-up",
    "channel mix": "circle",
    "embed, merge": "diamond",
    "bridge": "cross",
    "head": "triangle-down",
    "attention": "square",
    "linear map": "circle",
    "convolution": "diamond",
    "depthwise convolution": "cross",
}


def roofline_chart(profile: Profile) -> Spec | None:
    """None where no ceilings are kept."""
    values = [
        _point(str(row.resolution), layer, _kind(profile, layer.kind))
        for row in profile.model.rows
        for layer in row.layers
        if layer.moved_bytes and layer.time_s
    ]
    if profile.roofs is None or not values:
        return None
    kinds = [kind for kind in shown_kinds(profile) if any(value["kind"] == kind for value in values)]
    color = {"domain": kinds, "range": [KIND_COLORS[kind] for kind in kinds]}
    legend = {"title": None, "orient": "bottom", "columns": len(kinds)}
    shape = {"domain": kinds, "range": [SHAPES[kind] for kind in kinds]}
    encoding = _axes(values, profile.roofs)
    paths = {
        "data": {"values": values},
        "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.5},
        "encoding": {
            **encoding,
            "detail": {"field": "layer", "type": "nominal"},
            "color": {"field": "kind", "type": "nominal", "scale": color, "legend": legend},
            "order": {"field": "order", "type": "quantitative"},
        },
    }
    shown = ("layer", "size", "intensity", "rate", "time", "bound")
    dots = {
        "data": {"values": values},
        "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.9},
        "encoding": {
            **encoding,
            "color": {"field": "kind", "type": "nominal", "scale": color, "legend": legend},
            "shape": {"field": "kind", "type": "nominal", "scale": shape, "legend": legend},
            "tooltip": [{"field": field, "title": "image size" if field == "size" else field} for field in shown],
        },
    }
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "title": {
            "text": "Roofline",
            "subtitle": "predicted by the machine's ceilings, one path per layer from small images to large; both axes logarithmic",
        },
        "layer": [*_roofs(profile.roofs, encoding), paths, dots],
    }


def _kind(profile: Profile, kind: str) -> str:
    return next((name for name, kinds in shown_kinds(profile).items() if kind in kinds), kind)


def _point(size: str, layer: LayerTime, kind: str) -> Spec:
    rate = layer.flops / layer.time_s / 1e9
    return {
        "layer": layer.name,
        "kind": kind,
        "size": size,
        "order": layer.flops,
        "x": float(f"{layer.flops / layer.moved_bytes:.6g}"),
        "y": float(f"{rate:.6g}"),
        "intensity": f"{significant(layer.flops / layer.moved_bytes)} FLOPs/byte",
        "rate": f"{significant(rate)} GFLOP/s",
        "time": duration(layer.time_s),
        "bound": layer.bound,
    }


def _axes(values: list[Spec], roofs: Roofs) -> Spec:
    xs, ys = [value["x"] for value in values], [value["y"] for value in values]
    ridge = roofs.flops_per_s / roofs.bytes_per_s
    x_domain = [min([*xs, ridge]) / 1.5, max([*xs, ridge]) * 1.5]
    y_domain = [min(ys) / 1.5, roofs.flops_per_s / 1e9 * 1.6]

    def axis(field: str, domain: list[float], title: str) -> Spec:
        scale = {"type": "log", "domain": domain, "nice": False, "clamp": True}
        shown = {"title": title, "labelExpr": "format(datum.value, ',~r')", "tickCount": 6, "grid": False}
        return {"field": field, "type": "quantitative", "scale": scale, "axis": shown}

    return {
        "x": axis("x", x_domain, "FLOPs per byte that operators read and write"),
        "y": axis("y", y_domain, "GFLOP/s"),
    }


def _roofs(roofs: Roofs, encoding: Spec) -> list[Spec]:
    low, high = encoding["x"]["scale"]["domain"]
    bottom = encoding["y"]["scale"]["domain"][0]
    peak, ridge = roofs.flops_per_s / 1e9, roofs.flops_per_s / roofs.bytes_per_s
    start = max(low, bottom * 1e9 / roofs.bytes_per_s)
    corners = [(start, start * roofs.bytes_per_s / 1e9), (ridge, peak), (high, peak)]
    line = {
        "data": {"values": [{"x": x, "y": y} for x, y in corners]},
        "mark": {"type": "line", "color": "#767676", "strokeWidth": 1.4},
        "encoding": encoding,
    }
    middle = (start * ridge) ** 0.5
    names = [
        (high, peak, f"{significant(peak)} GFLOP/s", "right", -7),
        (middle, middle * roofs.bytes_per_s / 1e9, f"{significant(roofs.bytes_per_s / 1e9)} GB/s", "right", -7),
    ]
    texts = [
        {
            "data": {"values": [{"x": x, "y": y}]},
            "mark": {"type": "text", "text": text, "align": align, "dy": dy, "dx": -6}
            | {"color": "#767676", "fontSize": 11},
            "encoding": encoding,
        }
        for x, y, text, align, dy in names
    ]
    return [line, *texts]
