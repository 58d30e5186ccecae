"""LayerNorm over the channels of tokens, forward and backward."""

# B batch, N tokens, C channels

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.flop_counter import register_flop_formula

from sola_vision.ops._batched import examples_as_batch, examples_in_turn
from sola_vision.ops._checks import (
    FLOATS,
    accumulate_dtype,
    check_length,
    check_like,
    check_tensor,
    dtype_name,
    number,
    require,
    require_tensors,
)
from sola_vision.ops._transforms import under_transforms

OP = "layer_norm"
EPS = 1e-5
# elsewhere it is PyTorch's
COMPILED = ("cpu", "cuda", "meta")


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = EPS) -> Tensor:
    """``out = weight ⊙ (x − mean) / √(variance + eps) + bias`` for every token, over its channels.

    The variance is ``Σ (x − mean)² / C``. The backward keeps ``x`` alone and computes mean and variance again. On CUDA
    that holds where C is a multiple of 16 bytes, up to 4 KiB (forward) or 2 KiB (backward) a token; other calls are
    PyTorch's there.

    Args:
        x: ``(B, N, C)``, float64 (CPU), float32, bfloat16 or float16; any strides, last dimension contiguous.
        weight: ``(C,)`` in the dtype of ``x`` or in float32.
        bias: ``(C,)`` in the dtype of ``weight``.
        eps: added to the variance.

    Returns:
        ``(B, N, C)`` in the dtype of ``x``; sums run in float32 (float64 for float64).

    Raises:
        TypeError: names the argument that is no tensor, or no number.
        ValueError: names the argument, what came and what is allowed.

    Source: Ba et al., arXiv 1607.06450.

    """
    require_tensors(OP, x=x, weight=weight, bias=bias)
    eps = number(OP, "eps", eps, "call eps.item() first")
    if x.device.type in COMPILED:
        out: Tensor = _layer_norm(x, weight, bias, eps)
        return out
    _check(x, weight, bias, eps)
    return composed(x, weight, bias, eps=eps)


def composed(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = EPS) -> Tensor:
    """The same by PyTorch's operator."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def suits(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the operator takes a call that ``torch.nn.LayerNorm`` takes: tokens of its layout and plain tensors."""
    if any(map(is_traceable_wrapper_subclass, (x, weight, bias))):
        return False
    dtypes = {weight.dtype, bias.dtype}
    fits = x.dim() == 3 and weight.shape == bias.shape == x.shape[2:] and (x.stride(2) == 1 or x.size(2) <= 1)
    known = x.dtype in FLOATS and not (x.device.type == "cuda" and x.dtype == torch.float64)
    return fits and known and dtypes in ({x.dtype}, {accumulate_dtype(x)})


def _check(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    check_tensor(OP, "x", x, "(B, N, C)")
    check_length(OP, "weight", weight, "C", x.size(2))
    sums = accumulate_dtype(x)
    wanted = f"be in the dtype of x, {dtype_name(x.dtype)}, or of its sums, {dtype_name(sums)}"
    require(weight.dtype in (x.dtype, sums), OP, "weight", wanted, dtype_name(weight.dtype))
    require(weight.device == x.device, OP, "weight", f"be on the device of x, {x.device}", weight.device)
    check_length(OP, "bias", bias, "C", x.size(2))
    check_like(OP, "bias", bias, "weight", weight)
    require(eps >= 0, OP, "eps", "be at least 0", eps)


@torch.library.register_fake("sola::layer_norm")
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    _check(x, weight, bias, eps)
    return x.new_empty(x.shape)


@torch.library.register_fake("sola::layer_norm_backward")
def _(grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


@register_flop_formula([torch.ops.sola.layer_norm, torch.ops.sola.layer_norm_backward])
def _flops(*args: Any, **kwargs: Any) -> int:
    # no matrix product
    return 0


examples_as_batch("layer_norm", tokens=1, batch_dims=(0,))
examples_in_turn("layer_norm_backward")


def _widened(device: torch.device) -> list[torch.dtype]:
    """What autocast makes of tokens, weight and bias: float32 on CUDA, as of PyTorch's; it leaves them on a CPU."""
    return [torch.float32] * 3 if device.type == "cuda" else []


_layer_norm = under_transforms("layer_norm", _widened)
