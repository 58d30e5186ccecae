"""One kind of chart: a quantity over the number of tokens, both axes logarithmic, with guides ∝ N and ∝ N²."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil, floor, log10
from typing import Any

from sola_profile.report.tables import contender_name
from sola_profile.result import Contender, Profile

Spec = dict[str, Any]

WIDTH, HEIGHT = 560, 320
LABEL_HEIGHT = 14
# steps of a drawn curve
CURVE_POINTS = 60
GUIDE = "#767676"


@dataclass(frozen=True)
class Style:
    """How one model is drawn. Colours after Okabe and Ito, distinct for all common kinds of colour vision."""

    color: str
    shape: str
    dash: tuple[int, ...]


STYLES: Mapping[str, Style] = {
    "model": Style("#000000", "circle", (1, 0)),
    "linear": Style("#0072B2", "triangle-up", (6, 3)),
    "softmax": Style("#D55E00", "square", (2, 2)),
}
# of the other models, in turn
MORE_STYLES = (
    Style("#009E73", "diamond", (8, 2, 2, 2)),
    Style("#CC79A7", "triangle-down", (4, 1)),
    Style("#E69F00", "cross", (1, 2)),
    Style("#56B4E9", "triangle-right", (5, 5)),
)


@dataclass(frozen=True)
class Point:
    """One marked value of one model at N tokens of the first one, with an interval where there is one.

    ``size``: of the image. ``text``: what the reader is told of the value.
    """

    tokens: int
    value: float
    low: float | None = None
    high: float | None = None
    size: str = ""
    text: str = ""


@dataclass(frozen=True)
class Series:
    """The points of one model, and the curve through or beside them where there is one."""

    contender: Contender
    points: list[Point]
    style: Style
    curve: Callable[[float], float] | None = None


def styles(contenders: Sequence[Contender]) -> list[Style]:
    """One for each, by its part in the comparison."""
    more = cycle(MORE_STYLES)
    return [STYLES[contender.role] if contender.role in STYLES else next(more) for contender in contenders]


def scaling_chart(
    profile: Profile, found: Sequence[Series], unit: str, title: Spec, crossing: tuple[float, str] | None = None
) -> Spec:
    """Points of all models over N, with their curves and with the guides N and N² through the model's first point.

    The points of a model that has no curve are joined by straight lines. ``crossing``: a number of tokens to mark
    with an upright line, and its name; left out beyond the sizes of the profile.
    """
    anchor = found[0].points[0]
    last = max(row.tokens for row in profile.model.rows)
    guides = _guides(anchor, last) if last > anchor.tokens else []
    frame = _frame(profile, found, guides, unit)
    layers = [_line(frame, guide.ends, color=GUIDE, strokeWidth=1, strokeDash=[1, 3]) for guide in guides]
    if crossing is not None and anchor.tokens < crossing[0] < last:
        layers += _upright(frame, *crossing)
    ends = [_End(guide.name, *guide.ends[-1], GUIDE) for guide in guides]
    for series in found:
        points, style = series.points, series.style
        if not points:
            continue
        joined = [(float(point.tokens), point.value) for point in points]
        drawn = joined if series.curve is None else _sampled(series.curve, points)
        name = contender_name(series.contender)
        line = _line(frame, drawn, color=style.color, strokeWidth=1.8, strokeDash=list(style.dash))
        layers += [_named(layer, name) for layer in (line, *_points(frame, style, points))]
        ends.append(_End(name, *joined[-1], style.color))
    layers += _end_labels(frame, ends)
    return {"width": WIDTH, "height": HEIGHT, "title": title, "layer": layers}


@dataclass(frozen=True)
class _Guide:
    name: str
    ends: list[tuple[float, float]]


def _guides(anchor: Point, last: int) -> list[_Guide]:
    start = (float(anchor.tokens), anchor.value)
    return [
        _Guide(name, [start, (float(last), anchor.value * (last / anchor.tokens) ** power)])
        for name, power in (("∝ N", 1), ("∝ N²", 2))
    ]


@dataclass(frozen=True)
class _Frame:
    """The two logarithmic axes."""

    encoding: Spec
    y_domain: tuple[float, float]
    quantity: str

    def height_of(self, value: float) -> float:
        """Pixels from the top of the frame."""
        low, high = self.y_domain
        return HEIGHT * (log10(high) - log10(value)) / (log10(high) - log10(low))

    def value_at(self, height: float) -> float:
        """The value at so many pixels from the top."""
        low, high = self.y_domain
        return float(10 ** (log10(high) - height / HEIGHT * (log10(high) - log10(low))))


def _frame(profile: Profile, found: Sequence[Series], guides: Sequence[_Guide], unit: str) -> _Frame:
    sizes: dict[int, str] = {}
    for row in profile.model.rows:
        # two shapes of image may have the same number of tokens
        sizes[row.tokens] = " · ".join([*filter(None, [sizes.get(row.tokens)]), str(row.resolution)])
    points = [point for series in found for point in series.points]
    values = [bound for p in points for bound in (p.value, p.low or p.value, p.high or p.value)]
    values += [guide.ends[-1][1] for guide in guides]
    y_domain = (min(values) / 1.35, max(values) * 1.35)
    # under every size its number of tokens, as a second line
    labels = " : ".join(f"datum.value == {n} ? ['{size}', 'N = {n:,}']" for n, size in sizes.items()) + " : ''"
    what = "positions after the first convolution" if profile.model.spec is None else "tokens of stage 1"
    x_axis = {"values": list(sizes), "labelExpr": labels, "grid": False, "title": f"image size and {what}"}
    y_axis = {"values": _ticks(*y_domain), "labelExpr": "format(datum.value, ',~r')", "title": unit}
    encoding = {
        "x": _log_axis("tokens", (min(sizes) / 1.12, max(sizes) * 1.12), x_axis),
        "y": _log_axis("value", y_domain, y_axis),
    }
    return _Frame(encoding, y_domain, unit)


def _log_axis(field: str, domain: tuple[float, float], axis: Spec) -> Spec:
    scale = {"type": "log", "domain": list(domain), "nice": False}
    return {"field": field, "type": "quantitative", "scale": scale, "axis": axis}


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between two values."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    marks = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    return [mark for mark in marks if low <= mark <= high]


def _layer(frame: _Frame, mark: Spec, pairs: Sequence[tuple[float, float]]) -> Spec:
    values = [{"tokens": tokens, "value": value} for tokens, value in pairs]
    return {"data": {"values": values}, "mark": mark, "encoding": frame.encoding}


def _named(layer: Spec, series: str) -> Spec:
    """The same with the name of its series, by which a page can hide it."""
    for value in layer["data"]["values"]:
        value["series"] = series
    return layer


def _line(frame: _Frame, pairs: Sequence[tuple[float, float]], **style: Any) -> Spec:
    return _layer(frame, {"type": "line", **style}, pairs)


def _upright(frame: _Frame, tokens: float, name: str) -> list[Spec]:
    low, high = frame.y_domain
    text = {"type": "text", "text": name, "align": "right", "dx": -5, "dy": 8, "color": GUIDE, "fontSize": 11}
    line = _line(frame, [(tokens, low), (tokens, high)], color=GUIDE, strokeWidth=1.2)
    return [line, _layer(frame, text, [(tokens, high)])]


def _sampled(curve: Callable[[float], float], points: Sequence[Point]) -> list[tuple[float, float]]:
    low, high = points[0].tokens, points[-1].tokens
    steps = [low * (high / low) ** (step / CURVE_POINTS) for step in range(CURVE_POINTS + 1)]
    # six digits are what a chart can show, and the same on every machine
    return [(round(tokens, 3), float(f"{curve(tokens):.6g}")) for tokens in steps]


def _points(frame: _Frame, style: Style, points: Sequence[Point]) -> list[Spec]:
    spread = [
        {"tokens": p.tokens, "value": p.low, "high": p.high} for p in points if p.low is not None and p.high is not None
    ]
    dot = {"type": "point", "shape": style.shape, "color": style.color, "fill": style.color, "size": 65, "opacity": 1}
    dots = _layer(frame, dot, [(point.tokens, point.value) for point in points])
    for value, point in zip(dots["data"]["values"], points, strict=True):
        value.update({"size": point.size, "text": point.text})
    shown = (("series", "model"), ("size", "image size"), ("tokens", "N"), ("text", frame.quantity))
    dots["encoding"] = {**frame.encoding, "tooltip": [{"field": field, "title": title} for field, title in shown]}
    if not spread:
        return [dots]
    bars = {
        "data": {"values": spread},
        "mark": {"type": "rule", "color": style.color, "strokeWidth": 1.5},
        "encoding": {**frame.encoding, "y2": {"field": "high"}},
    }
    return [bars, dots]


@dataclass(frozen=True)
class _End:
    """A name to write where a series ends."""

    name: str
    tokens: float
    value: float
    color: str


def _end_labels(frame: _Frame, ends: Sequence[_End]) -> list[Spec]:
    """Names right of the last points, pushed apart where they would overlap."""
    layers = []
    lowest: dict[float, float] = {}
    for end in sorted(ends, key=lambda end: -end.value):
        height = max(frame.height_of(end.value), lowest.get(end.tokens, -LABEL_HEIGHT) + LABEL_HEIGHT)
        lowest[end.tokens] = height
        mark = {"type": "text", "text": end.name, "align": "left", "dx": 9, "color": end.color, "fontSize": 12}
        layers.append(_named(_layer(frame, mark, [(end.tokens, frame.value_at(height))]), end.name))
    return layers
