"""A study as charts: figures over depth, and likeness of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sola_profile.report.charts import STYLE
from sola_profile.report.study import headline, layer_name
from sola_profile.report.study_curves import layer_curves, layer_value
from sola_profile.report.study_maps import map_chart
from sola_profile.report.study_reach import of_variants
from sola_profile.report.study_reach_charts import exponent_chart, kernel_chart, reach_chart
from sola_profile.study.horizons import FIXED
from sola_profile.study.matrix_metrics import RowFigures
from sola_profile.study.study_result import DepthFigures, Horizon, LayerFigures, SizeStudy, Study

Spec = dict[str, Any]


def study_charts(study: Study) -> dict[str, Spec]:
    """File name → Vega-Lite spec; what was not reached is left out."""
    found: dict[str, Spec | None] = {"depth.svg": depth_chart(study)}
    for size in study.sizes:
        found[f"maps-{size.resolution}.svg"] = map_chart(size, study.images)
        found[f"cka-{size.resolution}.svg"] = cka_chart(size)
    found["reach.svg"] = reach_chart(study)
    stacked = _stacked(study)
    if stacked:
        found["exponent.svg"] = exponent_chart(stacked)
        found["kernel.svg"] = kernel_chart(stacked)
    return {name: {**STYLE, **spec} for name, spec in found.items() if spec is not None}


def _stacked(study: Study) -> list[Horizon]:
    """Fixed decays where there are some: those that the theory is about."""
    variants = of_variants(study)
    found = variants.get(FIXED) or next(iter(variants.values()), [])
    return [each for each in found if each.repeated]


# title of a panel, whether its axis is logarithmic, and what it draws of a layer
Figure = Callable[[LayerFigures, DepthFigures], float | None]


def _of_rows(figure: Callable[[RowFigures], float]) -> Figure:
    """Of a layer's matrices, where they are known."""
    return lambda layer, _: figure(layer.rows_mean) if layer.matrices else None


PANELS: tuple[tuple[str, bool, Figure], ...] = (
    ("Entropy of rows, over that of an even row", False, _of_rows(lambda rows: rows.entropy)),
    ("3 × 3 mass, over that of an even row", False, _of_rows(lambda rows: rows.local / rows.local_chance)),
    (
        "Distance, over that of an even row",
        False,
        _of_rows(lambda rows: rows.distance_px / (rows.distance_chance_px or 1)),
    ),
    ("Product of matrices: rows apart", True, lambda _, depth: depth.apart),
    ("Features: distance from rank one", False, lambda _, depth: depth.residual),
    ("Features: mean cosine of tokens", False, lambda _, depth: depth.similarity),
    ("High frequencies, mixer out over in", False, lambda _, depth: depth.gain),
    ("ERF: area of 50 % of the gradient", False, lambda _, depth: depth.areas[0.5]),
    ("ERF: area of 99 % of the gradient", False, lambda _, depth: depth.areas[0.99]),
)


def depth_chart(study: Study) -> Spec | None:
    """Small panels, one per figure, over the layers in the order they run."""
    sizes = [size for size in study.sizes if size.depths]
    if not sizes:
        return None
    order = [layer_name(layer) for layer in sizes[0].layers]
    panels = [drawn for panel in PANELS if (drawn := _panel(sizes, order, *panel)) is not None]
    subtitle = [headline(study), "squares on grey lines: softmax layers, circles: the others"]
    title = {"text": "As depth grows", "subtitle": subtitle}
    return {"title": title, "concat": panels, "columns": 3, "spacing": 26}


def _panel(sizes: Sequence[SizeStudy], order: list[str], title: str, logarithmic: bool, figure: Figure) -> Spec | None:
    """None where no layer has the figure."""
    values = [
        layer_value(order[index], str(size.resolution), shown, layer.is_softmax)
        for size in sizes
        for index, (layer, depth) in enumerate(zip(size.layers, size.depths, strict=True))
        if (shown := figure(layer, depth)) is not None and (shown > 0 or not logarithmic)
    ]
    if not values:
        return None
    names = [str(size.resolution) for size in sizes]
    return layer_curves(values, order, names, title, {"type": "log"} if logarithmic else {"zero": False})


def cka_chart(size: SizeStudy) -> Spec | None:
    """Linear CKA of every pair of layers."""
    if not size.cka:
        return None
    order = [layer_name(layer) for layer in size.layers]
    values = [
        {"one": order[row], "other": order[column], "cka": round(value, 3)}
        for row, line in enumerate(size.cka)
        for column, value in enumerate(line)
    ]
    lowest = round(min(map(min, size.cka)), 3)
    axis = {"title": None, "grid": False}
    return {
        "title": {"text": "Likeness of layers", "subtitle": f"linear CKA of features at {size.resolution} pixels"},
        "width": 24 * len(order),
        "height": 24 * len(order),
        "data": {"values": values},
        "mark": {"type": "rect", "tooltip": True},
        "encoding": {
            "x": {"field": "other", "type": "ordinal", "sort": order, "axis": {**axis, "labelAngle": -90}},
            "y": {"field": "one", "type": "ordinal", "sort": order, "axis": axis},
            "color": {
                "field": "cka",
                "type": "quantitative",
                "scale": {"scheme": "viridis", "domain": [lowest, 1]},
                "legend": {"title": "CKA"},
            },
        },
    }
