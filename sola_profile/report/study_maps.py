"""Maps over the image, layer by layer: what the centre feels of the pixels, and where the token in the middle looks."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from math import log10
from typing import Any

from PIL import Image
from torch import Tensor

from sola_profile.study.mixing import spread
from sola_profile.study.study_result import SizeStudy

Spec = dict[str, Any]

SIDE, GAP = 74, 8
MOST_LAYERS = 12
# pixels of a drawn map to each point of it, so that no viewer smooths them away
SCALE = 6
# gradients are shown down to 1e-5 of the largest
DECADES = 5
# viridis at five places: even in brightness, and readable for the colour-blind
VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
# where the names of layers stand, and the upper edge, in steps from the lower row
NAMES, HIGHEST = 1.78, 1.95
ROW_NAMES = ("gradient", "attention")


def map_chart(size: SizeStudy, images: Sequence[str]) -> Spec | None:
    """Two rows of maps, a column per layer; None without receptive fields. ``images``: that were looked at."""
    if not size.fields:
        return None
    shown = spread(len(size.layers), MOST_LAYERS)
    pictures, names = [], []
    for place, index in enumerate(shown):
        layer = size.layers[index]
        pictures.append({"x": place, "y": 1, "url": picture(_logarithmic(size.fields[index]))})
        if layer.centre is not None:
            pictures.append({"x": place, "y": 0, "url": picture(_linear(layer.centre))})
        names.append({"x": place, "y": NAMES, "text": str(layer.place), "kind": layer.mixer})
    x = _axis("x", [-0.75, len(shown) - 0.45])
    y = _axis("y", [-0.5, HIGHEST])
    rows = [{"x": -0.72, "y": 1 - row, "text": name} for row, name in enumerate(ROW_NAMES)]
    image = {"type": "image", "width": SIDE, "height": SIDE, "aspect": False, "aria": False}
    title = {
        "text": f"Maps at {size.resolution} pixels",
        "subtitle": [
            "upper: gradient of the centre behind each layer with respect to the pixels, logarithmic over five decades"
            + (f", sum over {len(images)} images" if len(images) > 1 else ""),
            f"lower: where the token in the middle looks, mean of the layer's matrices on {images[0]}; each map to its own largest",
        ],
    }
    return {
        "title": title,
        "width": round((len(shown) + 0.3) * (SIDE + GAP)),
        "height": round((HIGHEST + 0.5) * (SIDE + GAP)),
        "layer": [
            {"data": {"values": pictures}, "mark": image, "encoding": {"x": x, "y": y, "url": {"field": "url"}}},
            _texts(names, x, y, {"fontWeight": "bold"}, "text"),
            _texts(names, x, y, {"dy": 12, "fontSize": 10}, "kind"),
            _texts(rows, x, y, {"align": "center", "angle": 270, "fontSize": 11}, "text"),
        ],
    }


def _axis(field: str, domain: list[float]) -> Spec:
    return {"field": field, "type": "quantitative", "scale": {"domain": domain, "nice": False}, "axis": None}


def _texts(values: Sequence[Spec], x: Spec, y: Spec, style: Spec, field: str) -> Spec:
    encoding = {"x": x, "y": y, "text": {"field": field}}
    return {"data": {"values": list(values)}, "mark": {"type": "text", **style}, "encoding": encoding}


def _logarithmic(weight: Tensor) -> list[list[float]]:
    """Shares of the largest, the last decades from 0 to 1."""
    return [[max(0.0, 1 + log10(max(value, 1e-9)) / DECADES) for value in row] for row in weight.tolist()]


def _linear(weight: Tensor) -> list[list[float]]:
    largest = float(weight.abs().max()) or 1.0
    return (weight.abs() / largest).tolist()


def picture(values: list[list[float]]) -> str:
    """Values from 0 to 1 as a PNG in a data URL."""
    height, width = len(values), len(values[0])
    image = Image.new("RGB", (width, height))
    image.putdata([color(value) for row in values for value in row])
    large = image.resize((SCALE * width, SCALE * height), Image.Resampling.NEAREST).quantize(64)
    buffer = io.BytesIO()
    large.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def color(value: float) -> tuple[int, int, int]:
    """Viridis, between its places linearly."""
    place = min(max(value, 0.0), 1.0) * (len(VIRIDIS) - 1)
    low = min(int(place), len(VIRIDIS) - 2)
    share = place - low
    red, green, blue = (
        round(one + share * (other - one)) for one, other in zip(VIRIDIS[low], VIRIDIS[low + 1], strict=True)
    )
    return red, green, blue
