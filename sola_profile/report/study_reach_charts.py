"""The horizon theory as charts: reach behind every layer, its exponent, kernels beside their Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from sola_profile.report.study_curves import (
    COLORS,
    DASHES,
    PANEL_HEIGHT,
    PANEL_WIDTH,
    layer_curves,
    layer_value,
    pick,
)
from sola_profile.report.study_reach import of_variants, variant_name
from sola_profile.study.study_result import Horizon, Profile, Reach, Repeated, Study

Spec = dict[str, Any]

MEASURED, PREDICTED = "measured", "predicted"


def reach_chart(study: Study) -> Spec | None:
    """Reach behind every layer: the pattern and its linear twin, for each kind of decay."""
    variants = of_variants(study)
    if not variants:
        return None
    panels = []
    for variant, horizons in variants.items():
        for name, linear in ((study.question.model.spec.pattern, False), ("all linear", True)):
            found = [(str(each.resolution), each.linear if linear else each.own) for each in horizons]
            panels.append(_reach_panel(found, f"{name}, {variant_name(variant)}"))
    title = {
        "text": "Reach behind every layer",
        "subtitle": "distance that holds 99 % of an impulse, as a share of the image; squares on grey lines: softmax layers",
    }
    return {"title": title, "concat": panels, "columns": 2, "spacing": 26}


def _reach_panel(reaches: Sequence[tuple[str, tuple[Reach, ...]]], title: str) -> Spec:
    order = [str(reach.place) for reach in reaches[0][1]]
    values = [
        layer_value(str(reach.place), size, reach.measured_99, reach.is_softmax)
        for size, found in reaches
        for reach in found
        if isfinite(reach.measured_99) and reach.measured_99 > 0
    ]
    return layer_curves(values, order, [size for size, _ in reaches], title, {"type": "log"}) | {
        "width": 330,
        "height": 200,
    }


def exponent_chart(horizons: Sequence[Horizon]) -> Spec:
    """Reach over depth, both logarithmic, a panel per stage."""
    names = [str(each.resolution) for each in horizons]
    stages = sorted({stack.places[0].stage for each in horizons for stack in each.repeated})
    panels = [_exponent_panel(horizons, names, stage) for stage in stages]
    title = {
        "text": "Reach against depth, one linear layer stacked on itself",
        "subtitle": [
            "points: standard deviation measured on an impulse, lines: predicted, √(depth · variance), slope ½",
            f"both axes logarithmic; {variant_name(horizons[0].variant)}",
        ],
    }
    return {"title": title, "concat": panels, "columns": 2, "spacing": 26}


def _exponent_panel(horizons: Sequence[Horizon], names: list[str], stage: int) -> Spec:
    found = [(str(each.resolution), stack) for each in horizons for stack in _of_stage(each, stage)]
    values = [
        {"size": size, "depth": depth, "measured": measured / stack.tokens, "predicted": predicted / stack.tokens}
        for size, stack in found
        for depth, measured, predicted in zip(stack.depths, stack.measured_sigma, stack.predicted_sigma, strict=True)
    ]
    scale = {"type": "log"}
    x_axis = {"title": "layers", "values": [1, 2, 4, 8, 16, 32], "grid": False}
    x = {"field": "depth", "type": "quantitative", "scale": {**scale, "nice": False}, "axis": x_axis}
    color: Spec = {"field": "size", "type": "nominal", "sort": None, "legend": {"title": "pixels", "orient": "top"}}
    color["scale"] = pick(names, COLORS)

    def y(field: str) -> Spec:
        axis = {"title": "σ in heights of the image", "format": "~g", "tickCount": 5, "grid": False}
        return {"field": field, "type": "quantitative", "scale": scale, "axis": axis}

    line = {"mark": {"type": "line", "strokeWidth": 1.4}, "encoding": {"x": x, "y": y("predicted"), "color": color}}
    dots = {
        "mark": {"type": "point", "filled": True, "size": 36},
        "encoding": {"x": x, "y": y("measured"), "color": color},
    }
    first = found[0][1].places[0]
    title = {"text": f"layer {first}", "fontSize": 12}
    return {"width": 300, "height": 190, "title": title, "data": {"values": values}, "layer": [line, dots]}


def _of_stage(horizon: Horizon, stage: int) -> list[Repeated]:
    return [stack for stack in horizon.repeated if stack.alike and stack.places[0].stage == stage]


def kernel_chart(horizons: Sequence[Horizon]) -> Spec | None:
    """Measured kernels of the longest stage beside their Gaussians, at the largest image."""
    last = horizons[-1]
    longest = max(last.repeated, key=lambda stack: len(stack.places))
    if not longest.profiles:
        return None
    title = {
        "text": f"Kernel of layers {longest.name} in turn, and the Gaussian of the summed variances",
        "subtitle": f"at {last.resolution} pixels, {longest.tokens:,} tokens in raster order; {variant_name(last.variant)}",
    }
    panels = [_kernel_panel(profile) for profile in longest.profiles]
    return {"title": title, "hconcat": panels, "spacing": 24}


def _kernel_panel(profile: Profile) -> Spec:
    pairs = ((MEASURED, profile.measured), (PREDICTED, profile.predicted))
    values = [
        {"offset": offset, "share": float(f"{share:.5g}"), "what": what}
        for what, shares in pairs
        for offset, share in zip(profile.distance, shares, strict=True)
    ]
    layers = "1 layer" if profile.depth == 1 else f"{profile.depth} layers"
    x = {"field": "offset", "type": "quantitative", "axis": {"title": "tokens", "grid": False}}
    y = {"field": "share", "type": "quantitative"}
    names, what = [MEASURED, PREDICTED], {"field": "what", "type": "nominal"}
    legend = {"title": None, "orient": "top"}
    return {
        "width": PANEL_WIDTH,
        "height": PANEL_HEIGHT,
        "title": {"text": f"{layers}, {100 * profile.difference:.0f} % apart", "fontSize": 12},
        "data": {"values": values},
        "mark": {"type": "line", "strokeWidth": 1.6},
        "encoding": {
            "x": x,
            "y": {**y, "axis": {"title": "share of the kernel", "format": "~g", "tickCount": 4}},
            "color": {**what, "scale": pick(names, COLORS), "legend": legend},
            "strokeDash": {**what, "scale": pick(names, DASHES), "legend": None},
        },
    }
