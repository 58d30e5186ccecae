"""What is alive in memory as a step goes on: a stepped area with the peak marked."""

from __future__ import annotations

from typing import Any

from sola_profile.report.numbers import mebibytes
from sola_profile.result import Profile

Spec = dict[str, Any]

WIDTH, HEIGHT = 560, 220
COLOR = "#0072B2"


def timeline_chart(profile: Profile) -> Spec | None:
    """The predicted timeline of the largest size; None without one."""
    row = next((row for row in reversed(profile.model.rows) if row.memory_timeline), None)
    if row is None:
        return None
    values: list[Spec] = [
        {
            "moment": number,
            "live": round(moment.live_bytes / 2**20, 3),
            "place": moment.place,
            "text": mebibytes(moment.live_bytes),
        }
        for number, moment in enumerate(row.memory_timeline)
    ]
    peak = max(values, key=lambda value: value["live"])
    axis = {"title": "operators in the order they run", "ticks": False, "labels": False, "grid": False}
    x: Spec = {"field": "moment", "type": "quantitative", "axis": axis, "scale": {"nice": False}}
    y = {"field": "live", "type": "quantitative", "axis": {"title": "MiB", "tickCount": 5}}
    area = {"type": "area", "interpolate": "step-after", "color": COLOR, "opacity": 0.35, "line": {"color": COLOR}}
    shown = [{"field": "place", "title": "place"}, {"field": "text", "title": "alive"}]
    point = {"type": "point", "filled": True, "color": "#000000", "size": 60, "opacity": 1}
    right = peak["moment"] > len(values) / 2
    label = {"type": "text", "align": "right" if right else "left", "dx": -9 if right else 9, "dy": -8, "fontSize": 11}
    text = {"value": f"peak {peak['text']}: {peak['place']}"}
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "title": {
            "text": f"Memory through one step at {row.resolution}",
            "subtitle": "predicted; what a step holds on top of parameters and input",
        },
        "layer": [
            {"data": {"values": values}, "mark": area, "encoding": {"x": x, "y": y, "tooltip": shown}},
            {"data": {"values": [peak]}, "mark": point, "encoding": {"x": x, "y": y, "tooltip": shown}},
            {"data": {"values": [peak]}, "mark": label, "encoding": {"x": x, "y": y, "text": text}},
        ],
    }
