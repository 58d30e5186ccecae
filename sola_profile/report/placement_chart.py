"""A placement as a chart: reach over cost, the front as a stepped line, known patterns beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sola_profile.report.charts import STYLE
from sola_profile.report.placement import cost_text, headline, score_text
from sola_profile.study.placement import ACCURACY, Option, Placement
from sola_profile.study.reach import RUN
from sola_profile.study.space import LATENCY

Spec = dict[str, Any]

WIDTH, HEIGHT = 620, 360
LABEL_HEIGHT = 14
# after Okabe and Ito; shapes and names tell the three apart without colour
FRONT, KNOWN, CHOSEN = "#0072B2", "#D55E00", "#000000"


def placement_chart(placement: Placement) -> Spec | None:
    """The Vega-Lite spec; None without a front."""
    if not placement.front:
        return None
    known = [option for option in placement.references if _placed(placement, option)]
    points = [_value(placement, option) for option in placement.front]
    others = [_value(placement, option) for option in known if not option.on_front]
    frame = _frame(placement, [*points, *others])
    line = {"type": "line", "interpolate": "step-after", "color": FRONT, "strokeWidth": 1.8}
    layers = [_layer(frame, line, points), _layer(frame, _dot("circle", FRONT, 45), points, shown=placement)]
    layers.append(_layer(frame, _dot("triangle-up", KNOWN, 80), others, shown=placement))
    if placement.chosen is not None:
        ring = {"type": "point", "shape": "diamond", "filled": False, "color": CHOSEN, "size": 230, "strokeWidth": 2}
        layers.append(_layer(frame, ring, [_value(placement, placement.chosen)], shown=placement))
    layers += _labels(placement, frame, known)
    better = "more is better" if placement.score.more_is_better else "fewer is better"
    title = {
        "text": f"{placement.score.title} against cost",
        "subtitle": [
            headline(placement),
            f"{better}; circles: the front, triangles: other known patterns, diamond: chosen",
        ],
    }
    return {**STYLE, "width": WIDTH, "height": HEIGHT, "title": title, "layer": layers}


def _placed(placement: Placement, option: Option) -> bool:
    return option.score is not None and option.cost(placement.cost) is not None


def _value(placement: Placement, option: Option) -> Spec:
    cost, score = option.cost(placement.cost), option.score
    assert cost is not None
    assert score is not None
    # milliseconds of nanoseconds, 10⁹ MACs
    unit = 1e6 if placement.cost == LATENCY else 1e9
    shown = score if placement.score.name in (RUN, ACCURACY) else 100 * score
    return {
        "cost": float(f"{cost / unit:.6g}"),
        "score": float(f"{shown:.6g}"),
        "pattern": option.pattern,
        "names": ", ".join(option.names),
        "cost text": cost_text(option, placement.cost),
        "score text": score_text(placement.score.name, score),
    }


def _frame(placement: Placement, values: Sequence[Spec]) -> Spec:
    costs = [value["cost"] for value in values]
    # room for names on the right; wide ranges are drawn in ratios
    low, high = min(costs) / 1.03, max(costs) * 1.03
    scale: Spec = {"domain": [low, high], "nice": False, "zero": False}
    if high / low > 2:
        scale["type"] = "log"
    unit = "latency predicted from layers (ms)" if placement.cost == LATENCY else "GMACs"
    unit += ", logarithmic" if "type" in scale else ""
    score = placement.score.title if placement.score.name in (RUN, ACCURACY) else f"{placement.score.title} (%)"
    y_axis = {"title": score, "tickMinStep": 1} if placement.score.name == RUN else {"title": score}
    return {
        "x": {"field": "cost", "type": "quantitative", "scale": scale, "axis": {"title": unit, "labelOverlap": True}},
        "y": {"field": "score", "type": "quantitative", "scale": {"zero": False}, "axis": y_axis},
    }


def _dot(shape: str, color: str, size: int) -> Spec:
    return {"type": "point", "shape": shape, "filled": True, "color": color, "size": size, "opacity": 1}


def _layer(frame: Spec, mark: Spec, values: Sequence[Spec], shown: Placement | None = None) -> Spec:
    encoding = dict(frame)
    if shown is not None:
        fields = (
            ("pattern", "pattern"),
            ("names", "known as"),
            ("cost text", "cost"),
            ("score text", shown.score.title),
        )
        encoding["tooltip"] = [{"field": field, "title": title} for field, title in fields]
    return {"data": {"values": list(values)}, "mark": mark, "encoding": encoding}


def _labels(placement: Placement, frame: Spec, known: Sequence[Option]) -> list[Spec]:
    """Names beside known patterns, one under the other where they share a place."""
    layers, taken = [], dict[tuple[float, float], int]()
    values = sorted((_value(placement, option) for option in known), key=lambda v: (v["cost"], v["score"], v["names"]))
    costs = [value["cost"] for value in values]
    for value in values:
        near = (round(value["cost"] / max(costs), 2), value["score"])
        number = taken[near] = taken.get(near, -1) + 1
        right = value["cost"] > 0.75 * max(costs)
        mark = {
            "type": "text",
            "align": "right" if right else "left",
            "dx": -9 if right else 9,
            "dy": -7 + LABEL_HEIGHT * number,
            "fontSize": 11,
        }
        layer = _layer(frame, mark, [value])
        layer["encoding"]["text"] = {"field": "names"}
        layers.append(layer)
    return layers
