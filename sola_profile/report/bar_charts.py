"""Bars per image size: shares of the kinds of layers, and what the peak memory is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sola_profile.report.numbers import mebibytes, percent
from sola_profile.report.tables import shown_kinds
from sola_profile.result import Profile, Row

Spec = dict[str, Any]

WIDTH = 560

KIND_COLORS: Mapping[str, str] = {
    "softmax": "#D55E00",
    "linear": "#0072B2",
    "channel mix": "#BFC5CA",
    "embed, merge": "#E69F00",
    "bridge": "#009E73",
    "head": "#56B4E9",
    # of products, where there are no layers of ours
    "attention": "#D55E00",
    "linear map": "#BFC5CA",
    "convolution": "#E69F00",
    "depthwise convolution": "#009E73",
}
DARK_KINDS = ("softmax", "linear", "bridge", "attention", "depthwise convolution")
MEMORY_COLORS: Mapping[str, str] = {
    "parameters": "#BFC5CA",
    "optimizer": "#CC79A7",
    "input": "#E69F00",
    "gradients": "#009E73",
    "activations": "#0072B2",
}


# vega-tooltip takes what is called "image" for the address of one
_TOOLTIP = (("bar", "image size"), ("part", "part"), ("value", "is"))


def shares_chart(profile: Profile) -> Spec:
    """Stacked bars per size: shares in MACs, and in time where it was measured."""
    segments, bars, shown = [], [], shown_kinds(profile)
    for row in profile.model.rows:
        parts = {"MACs": {kind: macs / max(1, row.cost.macs) for kind, macs in row.cost.macs_by_kind.items()}}
        if row.kind_times is not None:
            parts["time"] = row.kind_times.shares
        for measure, shares in parts.items():
            bars.append(f"{row.resolution} {measure}")
            segments += _share_segments(bars[-1], shares, shown)
    axis = {"title": None, "labelExpr": "format(100 * datum.value, '.0f') + ' %'", "tickCount": 5}
    x = {**_x("start", axis), "scale": {"domain": [0, 1], "nice": False}}
    texts = [
        _texts(
            [segment for segment in segments if segment["text"] and (segment["part"] in DARK_KINDS) == dark],
            "middle",
            bars,
            {"color": "white" if dark else "black"},
        )
        for dark in (True, False)
    ]
    return {
        "width": WIDTH,
        "height": 30 * len(bars),
        "title": {
            "text": f"Share of each kind of {'layer' if profile.model.spec is not None else 'product'}",
            "subtitle": "of the matrix products (MACs), and of the measured time where there is one",
        },
        "layer": [_segments(segments, bars, {kind: KIND_COLORS[kind] for kind in shown}, x), *texts],
    }


def _share_segments(bar: str, shares: Mapping[str, float], shown: Mapping[str, tuple[str, ...]]) -> list[Spec]:
    segments, start = [], 0.0
    for name, kinds in shown.items():
        share = sum(shares[kind] for kind in kinds)
        number = percent(share, 0)
        # a name needs about 100 pixels, a number 30
        text = f"{name} {number}" if share > 0.2 else number if share > 0.055 else ""
        segment: Spec = {"bar": bar, "part": name, "text": text, "value": number}
        for key, place in (("start", start), ("end", start + share), ("middle", start + share / 2)):
            segment[key] = round(place, 6)
        segments.append(segment)
        start += share
    return segments


def memory_chart(profile: Profile) -> Spec:
    """One bar per size: what the predicted peak is made of, with a mark where the measured one is."""
    sizes = [str(row.resolution) for row in profile.model.rows]
    segments = [segment for row in profile.model.rows for segment in _memory_segments(row)]
    marks = [_memory_mark(row) for row in profile.model.rows]
    measured = {
        "data": {"values": [mark for mark in marks if "measured" in mark]},
        "mark": {"type": "tick", "color": "#000000", "thickness": 3, "size": 26},
        "encoding": {"x": _x("measured"), "y": _y(sizes)},
    }
    # room for the figures behind the longest bar
    domain = [0, 1.6 * max(mark["end"] for mark in marks)]
    x = {**_x("start", {"title": "MiB", "tickCount": 6}), "scale": {"domain": domain, "nice": False}}
    present = {segment["part"] for segment in segments}
    bars = _segments(segments, sizes, {part: MEMORY_COLORS[part] for part in MEMORY_COLORS if part in present}, x)
    texts = _texts(marks, "end", sizes, {"align": "left", "dx": 7})
    return {
        "width": WIDTH,
        "height": 34 * len(sizes),
        "title": {"text": "Peak memory", "subtitle": "predicted by liveness; black marks: measured"},
        "layer": [bars, measured, texts],
    }


def _memory_segments(row: Row) -> list[Spec]:
    peak, start, segments = row.predicted_memory, 0, []
    activations = peak.step_bytes - peak.gradient_bytes
    parts = (peak.parameter_bytes, peak.optimizer_bytes, peak.input_bytes, peak.gradient_bytes, activations)
    for name, part in zip(MEMORY_COLORS, parts, strict=True):
        if part == 0:
            continue
        segments.append(
            {
                "bar": str(row.resolution),
                "part": name,
                "start": start / 2**20,
                "end": (start + part) / 2**20,
                "value": mebibytes(part),
            }
        )
        start += part
    return segments


def _memory_mark(row: Row) -> Spec:
    peak, seen = row.predicted_memory, row.measured_memory
    mark: Spec = {"bar": str(row.resolution), "end": peak.total_bytes / 2**20, "text": mebibytes(peak.total_bytes)}
    if seen is not None:
        mark["measured"] = seen.total_bytes / 2**20
        mark["text"] += f", measured {mebibytes(seen.total_bytes)}"
    return mark


def _segments(values: Sequence[Spec], bars: Sequence[str], colors: Mapping[str, str], x: Spec) -> Spec:
    """Stacked bars from ``start`` to ``end``, coloured by ``part``."""
    return {
        "data": {"values": list(values)},
        "mark": {"type": "bar", "stroke": "white", "strokeWidth": 1.2},
        "encoding": {
            "x": x,
            "x2": {"field": "end"},
            "y": _y(bars),
            "tooltip": [{"field": field, "title": title} for field, title in _TOOLTIP],
            "color": {
                "field": "part",
                "type": "nominal",
                "scale": {"domain": list(colors), "range": list(colors.values())},
                "legend": {"title": None, "orient": "bottom", "columns": len(colors), "symbolType": "square"},
            },
        },
    }


def _texts(values: Sequence[Spec], place: str, bars: Sequence[str], style: Spec) -> Spec:
    return {
        "data": {"values": list(values)},
        "mark": {"type": "text", "fontSize": 11, **style},
        "encoding": {"x": _x(place), "y": _y(bars), "text": {"field": "text", "type": "nominal"}},
    }


def _x(field: str, axis: Spec | None = None) -> Spec:
    found: Spec = {"field": field, "type": "quantitative"}
    return found if axis is None else {**found, "axis": axis}


def _y(bars: Sequence[str]) -> Spec:
    axis = {"title": None, "labelFontSize": 12, "ticks": False, "domain": False}
    return {"field": "bar", "type": "nominal", "sort": list(bars), "axis": axis}
