"""The gated feed-forward part of a layer, with hidden units that never leave the caches, O(N)."""

# B batch, N tokens, C channels, M hidden units

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from sola_vision.ops._batched import examples_as_batch, examples_in_turn
from sola_vision.ops._checks import check_like, check_tensor, require, require_tensors
from sola_vision.ops._in_place import gated, squared_relu
from sola_vision.ops._transforms import lowered, under_transforms

OP = "channel_mix"
# elsewhere it is three products of PyTorch's and what joins them
COMPILED = ("cpu", "cuda", "meta")


def channel_mix(x_k: Tensor, x_r: Tensor, key: Tensor, value: Tensor, receptance: Tensor) -> Tensor:
    """``out = sigmoid(R x_r) ⊙ V relu(K x_k)²`` for every token.

    A block of hidden units is computed for some tokens, squared, and multiplied into their output, so no tensor of the hidden
    width exists. The backward keeps the arguments and ``out``, and computes hidden units again: 32 multiply-accumulates
    per squared channel and token where 27 would do with M = 4C. On CUDA that holds for the forward of 16-bit types with up to
    192 channels (beyond 128 with enough tokens), C and M in multiples of 8. Other calls and the backward are PyTorch's
    products there, with what comes between them in one pass over each tensor. Other devices run PyTorch's operators throughout.

    Args:
        x_k: ``(B, N, C)``, what enters the hidden units, float64 (CPU), float32, bfloat16 or float16; any strides, last
            dimension contiguous.
        x_r: ``(B, N, C)``, what enters the gate, in the dtype of ``x_k``.
        key: ``(M, C)``, the matrix K; all matrices in the dtype of ``x_k``.
        value: ``(C, M)``, the matrix V.
        receptance: ``(C, C)``, the matrix R.

    Returns:
        ``(B, N, C)`` in the dtype of ``x_k``; sums run in float32 (float64 for float64). PyTorch's products on CUDA
        follow ``torch.backends.cuda.matmul``.

    Raises:
        TypeError: names the argument that is no tensor.
        ValueError: names the argument, what came and what is allowed.

    Source: Vision-RWKV, arXiv 2403.02308, section 3.1 (channel mix); squared ReLU: Primer, arXiv 2109.08668.

    """
    require_tensors(OP, x_k=x_k, x_r=x_r, key=key, value=value, receptance=receptance)
    if x_k.device.type in COMPILED:
        out: Tensor = _channel_mix(x_k, x_r, key, value, receptance)
        return out
    _check(x_k, x_r, key, value, receptance)
    return composed(x_k, x_r, key, value, receptance)


def composed(x_k: Tensor, x_r: Tensor, key: Tensor, value: Tensor, receptance: Tensor) -> Tensor:
    """The same of PyTorch's operators, in place where nothing wants what was there."""
    hidden = squared_relu(F.linear(x_k, key))
    return gated(F.linear(x_r, receptance), F.linear(hidden, value))


def products(tokens: Any, channels: Any, hidden: Any) -> dict[str, Any]:
    """Multiply-accumulates of the three maps."""
    wide = tokens * channels * hidden
    return {"key": wide, "value": wide, "receptance": tokens * channels**2}


def backward_macs(tokens: Any, channels: Any, hidden: Any) -> Any:
    """Of the compiled backward: hidden units again and four products with them; the gate again and two."""
    return tokens * channels * (5 * hidden + 3 * channels)


def _check(x_k: Tensor, x_r: Tensor, key: Tensor, value: Tensor, receptance: Tensor) -> None:
    check_tensor(OP, "x_k", x_k, "(B, N, C)")
    check_tensor(OP, "x_r", x_r, "(B, N, C)")
    check_like(OP, "x_r", x_r, "x_k", x_k)
    require(x_r.shape == x_k.shape, OP, "x_r", f"have the shape of x_k, {tuple(x_k.shape)}", tuple(x_r.shape))
    channels, shape = x_k.size(2), tuple(key.shape)
    fits = len(shape) == 2 and shape[1] == channels and shape[0] >= 1
    require(fits, OP, "key", f"be (M, C) with M of at least 1 and C = {channels}", shape)
    for name, weight, letters, wanted in (
        ("value", value, "(C, M)", (channels, key.size(0))),
        ("receptance", receptance, "(C, C)", (channels, channels)),
    ):
        require(tuple(weight.shape) == wanted, OP, name, f"be {letters} = {wanted}", tuple(weight.shape))
    for name, weight in (("key", key), ("value", value), ("receptance", receptance)):
        check_like(OP, name, weight, "x_k", x_k)


@torch.library.register_fake("sola::channel_mix")
def _(x_k: Tensor, x_r: Tensor, key: Tensor, value: Tensor, receptance: Tensor) -> Tensor:
    _check(x_k, x_r, key, value, receptance)
    return x_k.new_empty(x_k.shape)


@torch.library.register_fake("sola::channel_mix_backward")
def _(
    grad_out: Tensor, x_k: Tensor, x_r: Tensor, key: Tensor, value: Tensor, receptance: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x_grads = (x_k.new_empty(x_k.shape), x_r.new_empty(x_r.shape))
    return (*x_grads, key.new_empty(key.shape), value.new_empty(value.shape), receptance.new_empty(receptance.shape))


@register_flop_formula(torch.ops.sola.channel_mix)
def _flops(x_k: Any, x_r: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
    return 2 * sum(products(x_k[0] * x_k[1], x_k[2], key[0]).values())


@register_flop_formula(torch.ops.sola.channel_mix_backward)
def _backward_flops(grad_out: Any, x_k: Any, x_r: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
    return 2 * backward_macs(x_k[0] * x_k[1], x_k[2], key[0])


examples_as_batch("channel_mix", tokens=2, batch_dims=(0,))
examples_in_turn("channel_mix_backward")
_channel_mix = under_transforms("channel_mix", lowered(5))
