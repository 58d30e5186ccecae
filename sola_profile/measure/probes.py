"""Small runs of PyTorch's own operators whose rates are a machine's ceilings: one family per kind of kernel.

Shapes are round numbers that cover what vision backbones use; none is taken from a model. Every probe runs the operator
as a model would, on operands that stay in the caches where they fit, into memory that has been used before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sola_profile import families as names
from sola_profile.hardware import ELEMENTS, FLOPS
from sola_vision import ops
from sola_vision.ops.channel_mix import products as mix_products

Step = Callable[[], object]
Make = Callable[..., tuple[Step, float]]

# elements of a probe of scalar operations: three such tensors of float32 fit in the second cache
CACHED = 2**15
HEADS = 4
# floating-point operations of a probe: a longer one would tell no more
MOST_WORK = 4e8
# and elements of an operand, where they are more than work
MOST_ELEMENTS = 2e6


@dataclass(frozen=True)
class Family:
    """Probes of one family. ``make(tensor, **shape)`` gives a step and its work in ``unit``; ``tensor(*sides)`` makes data.

    ``axes``: name of a length, with spaces as underscores in ``make`` → values. ``least``: the smallest shape, whose
    time is that of a call with nothing to do; None for families whose calls cost what an addition does.
    """

    name: str
    unit: str
    make: Make
    axes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    least: Mapping[str, int] | None = None


def _linear(tensor: Any, rows: int, inner: int, columns: int) -> tuple[Step, float]:
    rows = _fewer(rows, 2 * inner * columns)
    a, weight = tensor(rows, inner), tensor(columns, inner)
    return lambda: F.linear(a, weight), 2.0 * rows * inner * columns


def _batched(tensor: Any, batch: int, rows: int, inner: int, columns: int) -> tuple[Step, float]:
    a, b = tensor(batch, rows, inner), tensor(batch, inner, columns)
    return lambda: torch.bmm(a, b), 2.0 * batch * rows * inner * columns


def _fewer(count: int, work_of_one: float) -> int:
    """As many rows or positions as asked, or as make the most work that a probe has; from a few hundred on all are alike."""
    most: int = max(256, int(MOST_WORK / work_of_one))
    return min(count, most)


def _side(positions: int, work_of_one: float = 1) -> int:
    side: float = _fewer(positions, work_of_one) ** 0.5
    return max(1, round(side))


def _convolution(
    tensor: Any, channels_in: int, channels_out: int, positions: int, stride: int = 2, window: int = 3
) -> tuple[Step, float]:
    weight = tensor(channels_out, channels_in, window, window)
    side = _side(positions, 2 * weight.numel())
    x = tensor(1, channels_in, side * stride, side * stride)
    return lambda: F.conv2d(x, weight, stride=stride, padding=window // 2), 2.0 * weight.numel() * side**2


def _patches(tensor: Any, channels_in: int, channels_out: int, window: int, positions: int) -> tuple[Step, float]:
    weight = tensor(channels_out, channels_in, window, window)
    side = _side(positions, max(2 * weight.numel(), MOST_WORK * weight[0].numel() / MOST_ELEMENTS))
    x = tensor(1, channels_in, side * window, side * window)
    return lambda: F.conv2d(x, weight, stride=window), 2.0 * weight.numel() * side**2


def _pointwise(layout: torch.memory_format) -> Make:
    def make(tensor: Any, channels_in: int, channels_out: int, positions: int) -> tuple[Step, float]:
        weight = tensor(channels_out, channels_in, 1, 1)
        side = _side(positions, 2 * weight.numel())
        x = tensor(1, channels_in, side, side).contiguous(memory_format=layout)
        return lambda: F.conv2d(x, weight), 2.0 * weight.numel() * side**2

    return make


def _depthwise(layout: torch.memory_format) -> Make:
    def make(tensor: Any, channels: int, window: int, stride: int, positions: int) -> tuple[Step, float]:
        side = _side(positions, MOST_WORK * channels * stride**2 // MOST_ELEMENTS)
        x = tensor(1, channels, side * stride, side * stride).contiguous(memory_format=layout)
        weight = tensor(channels, 1, window, window)
        work = 2.0 * weight.numel() * side**2
        return lambda: F.conv2d(x, weight, stride=stride, padding=window // 2, groups=channels), work

    return make


def _sdpa(tensor: Any, queries: int, keys: int, dim: int) -> tuple[Step, float]:
    # the layout of a projection whose heads were moved forward
    q, k, v = (tensor(1, n, HEADS, dim).transpose(1, 2) for n in (queries, keys, keys))
    return lambda: F.scaled_dot_product_attention(q, k, v), 4.0 * HEADS * queries * keys * dim


def _softmax_attention(tensor: Any, queries: int, keys: int, dim: int) -> tuple[Step, float]:
    q, k, v = (tensor(1, n, HEADS, dim) for n in (queries, keys, keys))
    return lambda: ops.softmax_attention(q, k, v), 4.0 * HEADS * queries * keys * dim


def _linear_attention(**options: Any) -> Make:
    def make(tensor: Any, tokens: int, dim: int) -> tuple[Step, float]:
        q, k, v = (tensor(1, tokens, HEADS, dim) for _ in range(3))
        return lambda: ops.linear_attention(q, k, v, feature_map="elu1", **options), float(q.numel())

    return make


def _wkv(tensor: Any, tokens: int, channels: int) -> tuple[Step, float]:
    k, v, decay, bonus = tensor(1, tokens, channels), tensor(1, tokens, channels), tensor(channels), tensor(channels)
    return lambda: ops.wkv(k, v, decay, bonus), float(k.numel())


def _shift_mix(tensor: Any, mixes: int, channels: int, tokens: int = 1024) -> tuple[Step, float]:
    x, ratios = tensor(1, tokens // 32 or 1, min(tokens, 32), channels), tensor(mixes, channels)
    return lambda: ops.shift_mix(x, ratios), float(mixes * x.numel())


def _channel_mix(tensor: Any, tokens: int, channels: int, hidden: int) -> tuple[Step, float]:
    of_one = 2.0 * sum(mix_products(1, channels, hidden).values())
    x = tensor(1, _fewer(tokens, of_one), channels)
    maps = tensor(hidden, channels), tensor(channels, hidden), tensor(channels, channels)
    return lambda: ops.channel_mix(x, x, *maps), x.shape[1] * of_one


def _layer_norm(tensor: Any, width: int, elements: int = CACHED) -> tuple[Step, float]:
    x, weight, bias = tensor(max(1, elements // width), width), tensor(width), tensor(width)
    return lambda: F.layer_norm(x, (width,), weight, bias), float(x.numel())


def _token_norm(tensor: Any, width: int, elements: int = CACHED) -> tuple[Step, float]:
    x, weight, bias = tensor(1, max(1, elements // width), width), tensor(width), tensor(width)
    return lambda: ops.layer_norm(x, weight, bias), float(x.numel())


def _batch_norm(tensor: Any, positions: int, elements: int = CACHED) -> tuple[Step, float]:
    side = _side(positions)
    channels = max(1, elements // side**2)
    x, (mean, scale, weight, bias) = tensor(1, channels, side, side), (tensor(channels) for _ in range(4))
    return lambda: F.batch_norm(x, mean, scale, weight, bias), float(x.numel())


def _group_norm(tensor: Any) -> tuple[Step, float]:
    x, weight, bias = tensor(1, CACHED // 1024, 32, 32), tensor(CACHED // 1024), tensor(CACHED // 1024)
    return lambda: F.group_norm(x, 1, weight, bias), float(x.numel())


def _softmax(tensor: Any, width: int, elements: int = CACHED) -> tuple[Step, float]:
    x = tensor(max(1, elements // width), width)
    return lambda: torch.softmax(x, -1), float(x.numel())


def _sum(tensor: Any, run: int, elements: int = CACHED) -> tuple[Step, float]:
    x = tensor(CACHED // 64, 64) if run == 1 else tensor(max(1, elements // run), run)
    return (lambda: x.mean(0)) if run == 1 else (lambda: x.mean(-1)), float(x.numel())


def _pool(layout: torch.memory_format) -> Make:
    def make(tensor: Any) -> tuple[Step, float]:
        # enough of it that no branch predictor learns the order of the numbers
        x = tensor(1, 64, 64, 64).contiguous(memory_format=layout)
        return lambda: F.max_pool2d(x, 3, 2, 1), 9.0 * x.numel() / 4

    return make


def _average(layout: torch.memory_format) -> Make:
    def make(tensor: Any) -> tuple[Step, float]:
        x = tensor(1, CACHED // 1024, 32, 32).contiguous(memory_format=layout)
        return lambda: F.avg_pool2d(x, 2), float(x.numel())

    return make


def _resize(layout: torch.memory_format, mode: str, *, antialias: bool) -> Make:
    def make(tensor: Any) -> tuple[Step, float]:
        # beyond what PyTorch takes for small and resizes pixel by pixel
        x = tensor(1, 32, 36, 36).contiguous(memory_format=layout)
        return lambda: F.interpolate(x, scale_factor=2.0, mode=mode, antialias=antialias), 4.0 * x.numel()

    return make


def _copy(tensor: Any, run: int) -> tuple[Step, float]:
    x = tensor(max(1, CACHED // run), 2 * run)[:, :run]
    return x.contiguous, float(x.numel())


def _transpose(tensor: Any, read_run: int, written_run: int, power: int) -> tuple[Step, float]:
    shrink = max(1.0, (read_run * written_run / MOST_ELEMENTS) ** 0.5)
    # rows whose distance divides by a large power of two fall on few sets of a cache
    columns = power * (2 * round(read_run / shrink / power / 2) + 1)
    x = tensor(1, 1, round(written_run / shrink), columns).transpose(2, 3)
    return x.contiguous, float(x.numel())


def _unary(function: Callable[[Tensor], Tensor]) -> Make:
    def make(tensor: Any) -> tuple[Step, float]:
        x = tensor(CACHED)
        return partial(function, x), float(CACHED)

    return make


def _spread(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Make:
    """Two large operands, and one that is repeated for every row of ``run`` elements."""

    def make(tensor: Any, run: int) -> tuple[Step, float]:
        rows = CACHED // run
        x, y = tensor(rows, run), tensor(rows, run)
        z = tensor(run) if rows > 1 else tensor(rows, run)
        return partial(function, x, y, z), float(CACHED)

    return make


UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
    "exp": torch.exp,
    "tanh": torch.tanh,
    "elu": F.elu,
    "pow": torch.square,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}
SPREAD: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "add": lambda x, _, z: x + z,
    "mul": lambda x, _, z: x * z,
    "div": lambda x, _, z: x / z,
    "lerp": torch.lerp,
}

RUNS = (16, 64, 256, CACHED)
LAYOUTS = (("", torch.contiguous_format), (names.CHANNELS_LAST, torch.channels_last))

FAMILIES: Sequence[Family] = (
    Family(
        names.LINEAR,
        FLOPS,
        _linear,
        {"rows": (1, 50, 400, 3200, 25600), "inner": (20, 80, 320, 1280), "columns": (20, 80, 320, 1280)},
        {"rows": 1, "inner": 1, "columns": 1},
    ),
    Family(
        names.BATCHED,
        FLOPS,
        _batched,
        {"batch": (2, 16), "rows": (20, 300), "inner": (20, 300), "columns": (20, 300)},
        {"batch": 1, "rows": 1, "inner": 1, "columns": 1},
    ),
    Family(
        names.CONVOLUTION,
        FLOPS,
        _convolution,
        {
            "channels in": (16, 48, 144, 400),
            "channels out": (16, 48, 144, 400),
            "stride": (1, 2),
            "positions": (49, 400, 3000, 16000),
        },
        {"channels in": 16, "channels out": 16, "stride": 1, "positions": 1},
    ),
    Family(
        names.STEM,
        FLOPS,
        lambda tensor, **shape: _convolution(tensor, 3, **shape),
        {"channels out": (24, 80), "window": (3, 7), "positions": (400, 3000, 16000)},
    ),
    Family(
        names.PATCHES,
        FLOPS,
        _patches,
        {"channels in": (3, 60), "channels out": (40, 200), "window": (2, 4, 16), "positions": (16, 196, 3136)},
    ),
    *(
        Family(
            names.POINTWISE + suffix,
            FLOPS,
            _pointwise(layout),
            {"channels in": (20, 112, 500), "channels out": (20, 112, 500), "positions": (1, 49, 625, 6400, 25600)},
            {"channels in": 1, "channels out": 1, "positions": 1},
        )
        for suffix, layout in LAYOUTS
    ),
    *(
        Family(
            names.DEPTHWISE + suffix,
            FLOPS,
            _depthwise(layout),
            {"channels": (24, 112, 480), "window": (3, 7), "stride": (1, 2), "positions": (49, 625, 6400, 25600)},
            {"channels": 8, "window": 3, "stride": 1, "positions": 1},
        )
        for suffix, layout in LAYOUTS
    ),
    *(
        Family(
            name,
            FLOPS,
            make,
            {"queries": (50, 300, 1800), "keys": (50, 300, 1800), "dim": (24, 48, 96)},
            {"queries": 1, "keys": 1, "dim": 8},
        )
        for name, make in ((names.SDPA, _sdpa), (names.SOFTMAX_ATTENTION, _softmax_attention))
    ),
    *(
        Family(name, ELEMENTS, make, {"tokens": (50, 500, 5000), "dim": (24, 48, 96)}, {"tokens": 1, "dim": 8})
        for name, make in (
            (names.LINEAR_ATTENTION, _linear_attention()),
            (names.CHUNKED_ATTENTION, _linear_attention(causal=True)),
        )
    ),
    Family(
        names.WKV,
        ELEMENTS,
        _wkv,
        {"tokens": (50, 500, 5000), "channels": (40, 160, 640)},
        {"tokens": 1, "channels": 1},
    ),
    Family(
        names.SHIFT_MIX,
        ELEMENTS,
        _shift_mix,
        {"mixes": (2, 3), "channels": (40, 160, 640)},
        {"mixes": 1, "channels": 1, "tokens": 1},
    ),
    Family(
        names.CHANNEL_MIX,
        FLOPS,
        _channel_mix,
        {"tokens": (20, 100, 500, 3000), "channels": (40, 160, 640), "hidden": (160, 2560)},
        {"tokens": 1, "channels": 1, "hidden": 1},
    ),
    *(
        Family(name, ELEMENTS, make, {"width": (20, 80, 320, 1280)}, {"width": 1, "elements": 1})
        for name, make in ((names.LAYER_NORM, _layer_norm), (names.TOKEN_NORM, _token_norm))
    ),
    Family(
        names.BATCH_NORM,
        ELEMENTS,
        _batch_norm,
        {"positions": (1, 49, 625, 6400, 25600)},
        {"positions": 1, "elements": 1},
    ),
    Family(names.GROUP_NORM, ELEMENTS, _group_norm),
    Family(names.SOFTMAX, ELEMENTS, _softmax, {"width": (10, 100, 1000)}, {"width": 1, "elements": 1}),
    Family(names.SUM, ELEMENTS, _sum, {"run": (1, 49, 625, 6400)}, {"run": 4, "elements": 1}),
    *(
        Family(name + suffix, ELEMENTS, make(layout))
        for name, make in ((names.POOL, _pool), (names.AVERAGE, _average))
        for suffix, layout in LAYOUTS
    ),
    *(
        Family(name + edges + suffix, ELEMENTS, _resize(layout, mode, antialias=bool(edges)))
        for name, mode in ((names.NEAREST, "nearest"), (names.BILINEAR, "bilinear"), (names.BICUBIC, "bicubic"))
        for edges in ("", names.ANTIALIASED)[: 1 if mode == "nearest" else 2]
        for suffix, layout in LAYOUTS
    ),
    Family(names.COPY, ELEMENTS, _copy, {"run": (1, 4, 16, 64, 256, 4096)}),
    Family(
        names.TRANSPOSE,
        ELEMENTS,
        _transpose,
        {"read run": (60, 400, 3000), "written run": (60, 400, 3000, 24000), "power": (4, 32, 128, 512)},
    ),
    *(Family(names.ELEMENTWISE + name, ELEMENTS, _unary(function)) for name, function in UNARY.items()),
    *(
        Family(names.ELEMENTWISE + name, ELEMENTS, _spread(function), {"run": RUNS})
        for name, function in SPREAD.items()
    ),
)
