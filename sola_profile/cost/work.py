"""Work of one operator call from the shapes of its operands: a table of pure functions, for numbers and symbols alike.

1 multiply-accumulate (MAC) = 2 FLOPs. MACs are those of matrix products: matmul, convolution, the products of attention.
Everything else that computes is a scalar operation, filed under the names that the closed forms use
(``sola_vision.terms``): a LayerNorm takes 7 per element, a sigmoid one exp and two more, an online softmax one exp and
four more per pair of tokens. Bytes are compulsory traffic: every operand read once, every result written once, whatever
an operator keeps in caches or copies inside; a broadcast operand counts at its true size, a view moves nothing.
"""

# B batch, N queries, M keys, H heads, D head dim, V value head dim

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from sola_vision.ops.channel_mix import products as mix_products
from sola_vision.ops.linear_attention import chunked_macs
from sola_vision.ops.linear_attention import macs as linear_macs
from sola_vision.ops.shift_mix import scalar_ops as mix_scalar_ops
from sola_vision.ops.softmax_attention import macs as softmax_macs
from sola_vision.ops.wkv import scalar_ops as wkv_scalar_ops

# an int, or an element of a polynomial ring; both add, multiply and compare
Size = Any

CONVOLUTION, DEPTHWISE, LINEAR_MAP, ATTENTION = "convolution", "depthwise convolution", "linear map", "attention"
PRODUCT_KINDS = (CONVOLUTION, DEPTHWISE, LINEAR_MAP, ATTENTION)


@dataclass(frozen=True)
class Operand:
    """A tensor as formulas see it. ``elements``: without those that a broadcast repeats; ``constant``: a weight."""

    shape: tuple[Size, ...]
    itemsize: int
    elements: Size
    constant: bool = False


@dataclass(frozen=True)
class Work:
    """What one call computes. ``kind``: of the product, empty where there is none."""

    macs: Size = 0
    scalar_ops: Mapping[str, Size] = field(default_factory=dict)
    kind: str = ""


Formula = Callable[..., Work]


def formula_for(operator: str) -> Formula | None:
    """The formula of ``namespace::operator``, called with the result and then the operands; None without one.

    An in-place operator does the work of the one without the underscore.
    """
    if operator in PRODUCTS:
        return PRODUCTS[operator]
    plain = operator if operator in SCALARS else operator.removesuffix("_")
    return SCALARS.get(plain)


# behind the operator of a product of complex numbers
COMPLEX = " of complex numbers"
# real operations of one of complex numbers; what isn't here does to both parts what it does to a real number
_COMPLEX_OPERATIONS = {"mul": 6, "div": 11, "abs": 4, "reciprocal": 6}


def of_complex(operator: str, work: Work) -> Work:
    """The work of a call on complex numbers, from that on as many real ones: a product of two is four."""
    per_element = _COMPLEX_OPERATIONS.get(operator.partition("::")[2].removesuffix("_"), 2)
    scalars = {name: per_element * count for name, count in work.scalar_ops.items()}
    return Work(4 * work.macs, scalars, work.kind)


def elements(shape: tuple[Size, ...]) -> Size:
    """Elements of a shape."""
    return prod(shape, start=1)


def _kind_of(*operands: Operand) -> str:
    return LINEAR_MAP if any(operand.constant for operand in operands) else ATTENTION


def _mm(_out: Operand, a: Operand, b: Operand, *_: Any, **__: Any) -> Work:
    return Work(elements(a.shape) * b.shape[-1], {}, _kind_of(a, b))


def _addmm(out: Operand, _bias: Operand, a: Operand, b: Operand, **_: Any) -> Work:
    return Work(elements(a.shape) * b.shape[-1], {"elementwise": elements(out.shape)}, _kind_of(a, b))


def _mv(_out: Operand, a: Operand, b: Operand, *_: Any, **__: Any) -> Work:
    return Work(elements(a.shape), {}, _kind_of(a, b))


def _convolution(out: Operand, x: Operand, weight: Operand, bias: Operand | None, *rest: Any, **_: Any) -> Work:
    transposed, groups = rest[3], rest[5]
    # the weight's second dimension already is per group
    per_position = elements(weight.shape[1:])
    adds = {"elementwise": elements(out.shape)} if bias is not None else {}
    kind = DEPTHWISE if groups > 1 and weight.shape[1] == 1 else CONVOLUTION
    return Work(elements((x if transposed else out).shape) * per_position, adds, kind)


def _sdpa(out: tuple[Operand, ...], q: Operand, k: Operand, v: Operand, *rest: Any, **options: Any) -> Work:
    # (B, H, N, D); all pairs, as torch counts them: dense-equivalent for a causal mask, whose blocks the kernel skips
    del rest, options
    batch, heads, queries, dim = q.shape
    return _softmax(out[0], batch * heads * queries * k.shape[2], dim + v.shape[3], v.shape[3])


def _softmax(out: Operand, pairs: Size, width: int, value_dim: int) -> Work:
    del value_dim
    return Work(pairs * width, {"exp": pairs, "softmax": 4 * pairs + elements(out.shape)}, ATTENTION)


def _sola_softmax(
    out: tuple[Operand, ...], q: Operand, k: Operand, v: Operand, _scale: float, causal: bool, *_: Any
) -> Work:
    batch, queries, heads, dim = q.shape
    # D + V products per pair, so a head of dim 1 without values counts the pairs
    pairs = softmax_macs(batch, queries, k.shape[1], heads, 1, 0, causal=causal)
    return _softmax(out[0], pairs, dim + v.shape[3], v.shape[3])


# operations of a feature map on one element: exps, and others
_FEATURE_MAPS: Mapping[str, tuple[int, int]] = {"elu1": (1, 2), "exp": (1, 0), "relu": (0, 1), "identity": (0, 0)}


def _features(feature_map: str, count: Size) -> dict[str, Size]:
    exps, others = _FEATURE_MAPS[feature_map]
    return {name: number * count for name, number in (("exp", exps), ("activation", others)) if number}


def _normaliser(out: Operand, q: Operand, k: Operand) -> dict[str, Size]:
    # sum of the keys, dot product with the queries (product and sum), one division per output
    return {"normaliser": elements(k.shape) + 2 * elements(q.shape) + elements(out.shape)}


def _sola_linear(
    out: tuple[Operand, ...], q: Operand, k: Operand, v: Operand, feature_map: str, normalize: bool, *_: Any
) -> Work:
    batch, queries, heads, dim = q.shape
    macs = linear_macs(batch, queries, k.shape[1], heads, dim, v.shape[3])
    scalars = _features(feature_map, elements(q.shape) + elements(k.shape))
    return Work(macs, {**scalars, **(_normaliser(out[0], q, k) if normalize else {})}, ATTENTION)


def _sola_chunked(
    out: tuple[Operand, ...],
    q: Operand,
    k: Operand,
    v: Operand,
    decay: Operand | None,
    feature_map: str,
    causal: bool,
    normalize: bool,
    *rest: Any,
) -> Work:
    batch, tokens, heads, dim = q.shape
    chunk = rest[1]
    macs = chunked_macs(batch, tokens, heads, dim, v.shape[3], causal=causal, chunk=chunk)
    scalars = _features(feature_map, elements(q.shape) + elements(k.shape))
    if decay is not None:
        pairs = chunked_macs(batch, tokens, heads, 1, 0, causal=causal, chunk=chunk)
        directions = 1 if causal else 2
        scalars["decay"] = pairs + directions * (elements(q.shape) + elements(k.shape))
    return Work(macs, {**scalars, **(_normaliser(out[0], q, k) if normalize else {})}, ATTENTION)


def _sola_wkv(_out: Any, k: Operand, *_: Any) -> Work:
    return Work(0, wkv_scalar_ops(*k.shape))


def _sola_mix(_out: Any, x: Operand, ratios: Operand) -> Work:
    return Work(0, mix_scalar_ops(elements(x.shape), ratios.shape[0]))


def _sola_channel_mix(out: Operand, x_k: Operand, _x_r: Operand, key: Operand, *_: Any) -> Work:
    batch, tokens, channels = x_k.shape
    hidden = key.shape[0]
    gates = elements(out.shape)
    # a maximum and a square per hidden unit; the gate is a sigmoid and a product
    scalars = {"exp": gates, "activation": 2 * batch * tokens * hidden + 2 * gates, "elementwise": gates}
    return Work(sum(mix_products(batch * tokens, channels, hidden).values()), scalars, LINEAR_MAP)


def _lstm_layer(_out: Any, x: Operand, from_input: Operand, from_state: Operand, *_: Any, **__: Any) -> Work:
    """One layer in one direction; the weights hold the rows of all four gates."""
    steps = x.shape[0] * x.shape[1]
    units = steps * from_state.shape[1]
    # three sigmoids, two tanh; two products and two biases summed up per gate, then what is forgotten, added and shown
    scalars = {"exp": 5 * units, "activation": 12 * units, "elementwise": 16 * units}
    return Work(steps * (elements(from_input.shape) + elements(from_state.shape)), scalars, LINEAR_MAP)


PRODUCTS: Mapping[str, Formula] = {
    "aten::mm": _mm,
    "aten::bmm": _mm,
    "aten::mv": _mv,
    "aten::dot": _mv,
    "aten::vdot": _mv,
    "aten::addmm": _addmm,
    "aten::baddbmm": _addmm,
    "aten::convolution": _convolution,
    "aten::mkldnn_rnn_layer": _lstm_layer,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _sdpa,
    "sola::softmax_attention": _sola_softmax,
    "sola::linear_attention": _sola_linear,
    "sola::chunked_linear_attention": _sola_chunked,
    "sola::wkv": _sola_wkv,
    "sola::shift_mix": _sola_mix,
    "sola::channel_mix": _sola_channel_mix,
}


def _first(value: Any) -> Operand:
    """An operator's result, or the first of several."""
    found: Operand = value[0] if isinstance(value, (list, tuple)) else value
    return found


def _of_output(**operations: int) -> Formula:
    """So many operations per element of the result."""

    def formula(out: Any, *_: Any, **__: Any) -> Work:
        count = elements(_first(out).shape)
        return Work(0, {name: number * count for name, number in operations.items()})

    return formula


def _of_input(**operations: int) -> Formula:
    """So many operations per element of the first operand, as reductions have them."""

    def formula(_out: Any, x: Operand, *_: Any, **__: Any) -> Work:
        count = elements(_first(x).shape)
        return Work(0, {name: number * count for name, number in operations.items()})

    return formula


def _of_source(_out: Any, _x: Operand, _dim: int, _index: Operand, source: Operand, *_: Any, **__: Any) -> Work:
    """One operation per element that is scattered."""
    return Work(0, {"elementwise": elements(source.shape)})


def _pool(dims: int) -> Formula:
    def formula(out: Any, _x: Operand, kernel: Any, *_: Any, **__: Any) -> Work:
        sides = [kernel] if isinstance(kernel, int) else list(kernel)
        window = prod(sides * dims if len(sides) == 1 else sides)
        return Work(0, {"elementwise": elements(_first(out).shape) * window})

    return formula


# operations of grid_sample by its mode (bilinear, nearest, bicubic): per element of the result, which weighs 4 neighbours, takes
# one, or weighs 16 row by row, and per position, whose coordinates are scaled, rounded and turned into weights
_SAMPLES = ((7, 16), (0, 8), (35, 60))
# in three dimensions 8 neighbours, or one
_SAMPLES_3D = ((15, 34), (0, 12))


def _grid_sample(costs: tuple[tuple[int, int], ...]) -> Formula:
    def formula(out: Operand, _x: Operand, grid: Operand, mode: int, *_: Any, **__: Any) -> Work:
        per_element, per_position = costs[mode]
        return Work(0, {"elementwise": per_element * elements(out.shape) + per_position * elements(grid.shape[:-1])})

    return formula


ELEMENTWISE = _of_output(elementwise=1)
REDUCTION = _of_input(elementwise=1)
NOTHING: Formula = lambda *_, **__: Work()  # noqa: E731  a table entry like its neighbours

# what is neither here nor a product is judged by what operator_kind says of it
SCALARS: Mapping[str, Formula] = {
    "aten::exp": _of_output(exp=1),
    "aten::sigmoid": _of_output(exp=1, activation=2),
    "aten::silu": _of_output(exp=1, activation=3),
    "aten::tanh": _of_output(exp=1, activation=3),
    # the error function costs what an exp costs; its argument is scaled, then 1 is added, halved and multiplied
    "aten::gelu": _of_output(exp=1, activation=4),
    "aten::elu": _of_output(exp=1, activation=2),
    "aten::softplus": _of_output(exp=1, activation=2),
    "aten::relu": _of_output(activation=1),
    "aten::relu6": _of_output(activation=2),
    "aten::hardtanh": _of_output(activation=2),
    "aten::leaky_relu": _of_output(activation=2),
    "aten::hardsigmoid": _of_output(activation=4),
    "aten::hardswish": _of_output(activation=5),
    "aten::pow": _of_output(activation=1),
    "aten::sin": _of_output(trigonometric=1),
    "aten::cos": _of_output(trigonometric=1),
    "aten::lerp": _of_output(elementwise=3),
    "aten::addcmul": _of_output(elementwise=2),
    "aten::addcdiv": _of_output(elementwise=2),
    "aten::native_layer_norm": _of_input(norm=7),
    "sola::layer_norm": _of_input(norm=7),
    "aten::native_group_norm": _of_input(norm=7),
    # neither a mean nor a shift
    "aten::rms_norm": _of_input(norm=4),
    "aten::_fused_rms_norm": _of_input(norm=4),
    # in evaluation mode the statistics are constants: one scale and one shift
    "aten::_native_batch_norm_legit_no_training": _of_input(norm=2),
    # of statistics of its own: as a LayerNorm
    "aten::_native_batch_norm_legit": _of_input(norm=7),
    "aten::native_batch_norm": _of_input(norm=7),
    "aten::_softmax": _of_input(exp=1, softmax=4),
    "aten::_log_softmax": _of_input(exp=1, softmax=4),
    "aten::_safe_softmax": _of_input(exp=1, softmax=4),
    "aten::var": _of_input(elementwise=3),
    "aten::var_mean": _of_input(elementwise=3),
    "aten::std": _of_input(elementwise=3),
    "aten::linalg_vector_norm": _of_input(elementwise=2),
    "aten::avg_pool2d": _pool(2),
    "aten::avg_pool3d": _pool(3),
    "aten::max_pool2d_with_indices": _pool(2),
    "aten::max_pool3d_with_indices": _pool(3),
    "aten::_adaptive_avg_pool2d": REDUCTION,
    "aten::_adaptive_avg_pool3d": REDUCTION,
    "aten::adaptive_max_pool2d": REDUCTION,
    "aten::adaptive_max_pool3d": REDUCTION,
    **dict.fromkeys((f"aten::upsample_nearest{dims}d" for dims in (1, 2, 3)), NOTHING),
    **dict.fromkeys((f"aten::_upsample_nearest_exact{dims}d" for dims in (1, 2, 3)), NOTHING),
    "aten::upsample_linear1d": _of_output(elementwise=3),
    "aten::upsample_trilinear3d": _of_output(elementwise=16),
    "aten::upsample_bilinear2d": _of_output(elementwise=8),
    "aten::_upsample_bilinear2d_aa": _of_output(elementwise=8),
    "aten::upsample_bicubic2d": _of_output(elementwise=32),
    "aten::_upsample_bicubic2d_aa": _of_output(elementwise=32),
    "aten::grid_sampler_2d": _grid_sample(_SAMPLES),
    "aten::grid_sampler_3d": _grid_sample(_SAMPLES_3D),
    **dict.fromkeys(("aten::scatter_add", "aten::index_add", "aten::scatter_reduce"), _of_source),
    # the norm of every row, and each element over its own
    "aten::_weight_norm_interface": _of_input(norm=4),
    "prim::device": NOTHING,
}

# operators of these kinds that have no line of their own
BY_KIND: Mapping[str, Formula] = {
    "view": NOTHING,
    "copy": NOTHING,
    "element-wise": ELEMENTWISE,
    "reduction": REDUCTION,
    "scan": REDUCTION,
    "random": ELEMENTWISE,
}
