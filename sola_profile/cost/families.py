"""Which measured rate speaks for an operator call: its family, its shape there, and how much work it has.

Families are kinds of kernels whose rate depends on few lengths. A call belongs to one by its operator, by the layout of
its operands and by constants such as the size of a convolution's window; never by the model that it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from sola_profile.cost.convolutions import is_channels_last
from sola_profile.families import (
    ANTIALIASED,
    AVERAGE,
    BATCH_NORM,
    BATCHED,
    BICUBIC,
    BILINEAR,
    CHANNEL_MIX,
    CHANNELS_LAST,
    CHUNKED_ATTENTION,
    CONVOLUTION,
    COPY,
    DEPTHWISE,
    ELEMENTWISE,
    GROUP_NORM,
    LAYER_NORM,
    LINEAR,
    LINEAR_ATTENTION,
    NEAREST,
    PATCHES,
    POINTWISE,
    POOL,
    SDPA,
    SHIFT_MIX,
    SOFTMAX,
    SOFTMAX_ATTENTION,
    STEM,
    SUM,
    TOKEN_NORM,
    TRANSPOSE,
    WKV,
)
from sola_vision.ops.channel_mix import products

# images have so few; convolutions of them are a kernel of their own
FEW_CHANNELS = 4


@dataclass(frozen=True)
class Place:
    """``amount``: work in the unit of the family's rate. ``passes_bytes``: traffic beside operands and result.

    ``before``: a copy that the operator makes of an operand first.
    """

    family: str
    shape: Mapping[str, int] = field(default_factory=dict)
    amount: int = 0
    passes_bytes: int = 0
    before: Place | None = None


def place_of(operator: str, out: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Place | None:
    """The place of ``namespace::operator`` among the families; None where none is known for it.

    ``out``, ``args``, ``kwargs``: of the call; of tensors only shapes and strides are looked at.
    """
    _, _, name = operator.partition("::")
    plain = name if name in _PLACES else name.removesuffix("_")
    result = next((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), None)
    if result is None or result.numel() == 0:
        return None
    places = _PLACES.get(operator) or _PLACES.get(plain)
    if places is not None:
        found = places(result, *args, **kwargs)
        # a product of two complex numbers is four
        return replace(found, amount=4 * found.amount) if result.is_complex() else found
    return _elementwise(plain, result, *args)


def _bytes(out: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))


def _mm(_out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> Place:
    rows, inner = a.shape
    shape = {"rows": rows, "inner": inner, "columns": b.shape[-1]}
    return Place(LINEAR, shape, 2 * rows * inner * b.shape[-1])


def _addmm(out: Tensor, _bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> Place:
    found = _mm(out, a, b)
    # the bias is spread over the result first, and the product added to it
    return Place(found.family, found.shape, found.amount, _bytes(out))


def _mv(out: Tensor, a: Tensor, *_: Any, **__: Any) -> Place:
    return Place(LINEAR, {"rows": 1, "inner": a.shape[-1], "columns": out.numel()}, 2 * a.numel())


def _bmm(_out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> Place:
    batch, rows, inner = a.shape
    shape = {"batch": batch, "rows": rows, "inner": inner, "columns": b.shape[-1]}
    return Place(BATCHED, shape, 2 * batch * rows * inner * b.shape[-1])


def _baddbmm(out: Tensor, _bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> Place:
    return _bmm(out, a, b)


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> Place:
    stride, transposed, groups = list(rest[1]), rest[4], rest[6]
    window = list(weight.shape[2:])
    positions = prod((x if transposed else out).shape[2:])
    amount = 2 * weight.numel() * positions * out.shape[0]
    channels_in, channels_out = x.shape[1] // groups, out.shape[1] // groups
    last = CHANNELS_LAST if _channels_last(x) or _channels_last(weight) else ""
    before = None if last or x.is_contiguous() else _clone(x.new_empty(x.shape), x)
    channels = {"channels in": channels_in, "channels out": channels_out}
    if groups > 1 and channels_in == 1:
        shape = {"channels": groups, "window": window[0], "stride": stride[0], "positions": positions}
        return Place(DEPTHWISE + last, shape, amount, before=before)
    if prod(window) == 1 and prod(stride) == 1:
        return Place(POINTWISE + last, {**channels, "positions": positions}, amount, before=before)
    if window == stride:
        shape = {**channels, "window": window[0], "positions": positions}
        return Place(PATCHES, shape, amount, before=before)
    if channels_in <= FEW_CHANNELS:
        shape = {"channels out": channels_out, "window": window[0], "positions": positions}
        return Place(STEM, shape, amount, before=before)
    return Place(CONVOLUTION, {**channels, "stride": stride[0], "positions": positions}, amount, before=before)


def _channels_last(x: Tensor) -> bool:
    """Whether a convolution takes this layout as it is.

    A view of tokens (1, N, C) as an image has the layout and not the step of the batch: it is copied first.
    """
    return is_channels_last(x) and not x.is_contiguous()


def _sdpa(_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Place:
    batch, heads, queries, dim = q.shape
    amount = 2 * batch * heads * queries * k.shape[2] * (dim + v.shape[3])
    return Place(SDPA, {"queries": queries, "keys": k.shape[2], "dim": dim}, amount)


def _softmax_attention(_out: Tensor, q: Tensor, k: Tensor, v: Tensor, _scale: float, causal: bool, *_: Any) -> Place:
    batch, queries, heads, dim = q.shape
    amount = 2 * batch * heads * queries * k.shape[1] * (dim + v.shape[3])
    # of a causal mask the blocks above the diagonal are skipped
    return Place(
        SOFTMAX_ATTENTION, {"queries": queries, "keys": k.shape[1], "dim": dim}, amount // 2 if causal else amount
    )


def _linear_attention(family: str) -> Callable[..., Place]:
    def place(_out: Tensor, q: Tensor, _k: Tensor, _v: Tensor, *_: Any, **__: Any) -> Place:
        return Place(family, {"tokens": q.shape[1], "dim": q.shape[3]}, q.numel())

    return place


def _wkv(_out: Tensor, k: Tensor, *_: Any, **__: Any) -> Place:
    return Place(WKV, {"tokens": k.shape[1], "channels": k.shape[2]}, k.numel())


def _shift_mix(_out: Tensor, x: Tensor, ratios: Tensor) -> Place:
    return Place(SHIFT_MIX, {"mixes": ratios.shape[0], "channels": x.shape[3]}, ratios.shape[0] * x.numel())


def _token_norm(_out: Tensor, x: Tensor, *_: Any) -> Place:
    return Place(TOKEN_NORM, {"width": x.shape[2]}, x.numel())


def _channel_mix(_out: Tensor, x_k: Tensor, _x_r: Tensor, key: Tensor, *_: Any) -> Place:
    hidden, channels = key.shape
    tokens = x_k.shape[0] * x_k.shape[1]
    amount = 2 * sum(products(tokens, channels, hidden).values())
    return Place(CHANNEL_MIX, {"tokens": tokens, "channels": channels, "hidden": hidden}, amount)


def _layer_norm(_out: Tensor, x: Tensor, normalized: Sequence[int], *_: Any, **__: Any) -> Place:
    return Place(LAYER_NORM, {"width": prod(normalized)}, x.numel())


def _batch_norm(_out: Tensor, x: Tensor, *_: Any, **__: Any) -> Place:
    return Place(BATCH_NORM, {"positions": prod(x.shape[2:])}, x.numel())


def _group_norm(_out: Tensor, x: Tensor, *_: Any, **__: Any) -> Place:
    return Place(GROUP_NORM, {}, x.numel())


def _softmax(_out: Tensor, x: Tensor, *_: Any, **__: Any) -> Place:
    return Place(SOFTMAX, {"width": x.shape[-1]}, x.numel())


def _sum(out: Tensor, x: Tensor, *_: Any, **__: Any) -> Place:
    # whether what is summed lies side by side
    return Place(SUM, {"run": _run(x) if out.stride()[-1:] != x.stride()[-1:] else 1}, x.numel())


def _pool(family: str) -> Callable[..., Place]:
    def place(out: Tensor, x: Tensor, window: Any, *_: Any, **__: Any) -> Place:
        sides = [window] if isinstance(window, int) else list(window)
        amount = out.numel() * prod(sides * 2 if len(sides) == 1 else sides)
        return Place(family + _pixels(x), {}, amount)

    return place


def _resize(family: str) -> Callable[..., Place]:
    def place(out: Tensor, x: Tensor, *_: Any, **__: Any) -> Place:
        return Place(family + _pixels(x), {}, out.numel())

    return place


def _pixels(x: Tensor) -> str:
    """What a family is called of images whose channels lie side by side."""
    return CHANNELS_LAST if x.stride()[1] == 1 < x.shape[1] else ""


def _clone(out: Tensor, *args: Any, **_: Any) -> Place:
    # copy_ names its target first
    source = next(leaf for leaf in reversed(args) if isinstance(leaf, Tensor))
    if source.shape != out.shape:
        return Place(COPY, {"run": _run(out)}, out.numel())
    order, target = _order(source), _order(out)
    if order and target and order[0] != target[0] and source.stride()[order[0]] == 1:
        read, written = _common(order, target, source), _common(target, order, out)
        # the largest power of two that divides the distance of what is read one after the other
        power = read & -read
        return Place(TRANSPOSE, {"read run": read, "written run": written, "power": power}, out.numel())
    same = next((n for n, (a, b) in enumerate(zip(order, target, strict=True)) if a != b), len(order))
    run = prod(source.shape[dim] for dim in order[:same])
    return Place(COPY, {"run": min(run, _run(source))}, out.numel())


def _common(order: Sequence[int], other: Sequence[int], x: Tensor) -> int:
    """Elements from the first of ``order`` up to the dimension that ``other`` begins with."""
    return prod(x.shape[dim] for dim in order[: order.index(other[0])])


def _order(x: Tensor) -> list[int]:
    """Dimensions of more than one element, the one of the smallest step first."""
    return sorted((dim for dim in range(x.dim()) if x.shape[dim] > 1), key=lambda dim: (x.stride()[dim], -dim))


def _cat(out: Tensor, tensors: Sequence[Tensor], *_: Any, **__: Any) -> Place:
    parts = [tensor for tensor in tensors if tensor.numel()]
    return Place(COPY, {"run": min(min(_run(part), part.shape[-1] * _inner(part)) for part in parts)}, out.numel())


def _inner(part: Tensor) -> int:
    """1 where the last dimension may be the one that is joined."""
    return max(1, _run(part) // part.shape[-1]) if part.dim() < 3 else 1


def _pad(out: Tensor, x: Tensor, *_: Any, **__: Any) -> Place:
    # the result is filled first, then the operand copied into it
    return Place(COPY, {"run": min(_run(x), out.shape[-1])}, out.numel(), _bytes(out))


def _run(x: Tensor) -> int:
    """Elements that lie side by side, counted from the last dimension on in the order of the strides."""
    run = 1
    for step, side in sorted(zip(x.stride(), x.shape, strict=True)):
        if side == 1:
            continue
        if step != run:
            break
        run *= side
    return run


def _elementwise(name: str, out: Tensor, *args: Any) -> Place:
    operands = [leaf for leaf in tree_leaves(list(args)) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    runs = [_run(operand) for operand in operands if operand.numel() > 1]
    return Place(ELEMENTWISE + name, {"run": min(runs, default=out.numel())}, out.numel())


_PLACES: Mapping[str, Callable[..., Place]] = {
    "mm": _mm,
    "addmm": _addmm,
    "mv": _mv,
    "bmm": _bmm,
    "baddbmm": _baddbmm,
    "aten::convolution": _convolution,
    "_scaled_dot_product_flash_attention_for_cpu": _sdpa,
    "sola::softmax_attention": _softmax_attention,
    "sola::linear_attention": _linear_attention(LINEAR_ATTENTION),
    "sola::chunked_linear_attention": _linear_attention(CHUNKED_ATTENTION),
    "sola::wkv": _wkv,
    "sola::shift_mix": _shift_mix,
    "sola::layer_norm": _token_norm,
    "sola::channel_mix": _channel_mix,
    "native_layer_norm": _layer_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_group_norm": _group_norm,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "_safe_softmax": _softmax,
    "max_pool2d_with_indices": _pool(POOL),
    "avg_pool2d": _pool(AVERAGE),
    "mean": _sum,
    "sum": _sum,
    "_adaptive_avg_pool2d": _sum,
    "linalg_vector_norm": _sum,
    "upsample_nearest2d": _resize(NEAREST),
    "_upsample_nearest_exact2d": _resize(NEAREST),
    "upsample_bilinear2d": _resize(BILINEAR),
    "_upsample_bilinear2d_aa": _resize(BILINEAR + ANTIALIASED),
    "upsample_bicubic2d": _resize(BICUBIC),
    "_upsample_bicubic2d_aa": _resize(BICUBIC + ANTIALIASED),
    **dict.fromkeys(("clone", "copy_", "_to_copy", "roll", "index", "repeat"), _clone),
    "cat": _cat,
    "constant_pad_nd": _pad,
}
