"""Bytes that operators allocate inside, where they are a visible share of a step's memory.

Those of convolutions on the CPU are in ``sola_profile.cost.convolutions``, and ``tests/test_memory.py`` checks all of them.
Convolutions on CUDA choose their workspace at run time; none is predicted there.

Channel mix knows itself what it holds on the CPU: scratch of up to 512 tokens a thread, which is as much as a small image
has, and sums of its weights' gradients. On CUDA it holds hidden units where it has no kernel, and in its backward.

Left out, because they are small: thread scratch of the other compiled operators (a few tiles per thread), what channel
mix copies where its tokens don't lie row behind row, the hidden units of CUDA's channel mixes of 136 to 192 channels where these
have too few tokens for their kernel, and what oneDNN keeps for itself in half precision (up to about 1 MB).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sola_profile.cost.convolutions import (
    convolution_backward_bytes,
    convolution_buffers,
    convolution_bytes,
    has_neighbouring_channels,
    is_channels_last,
    nbytes,
)
from sola_vision.ops._extension import extension

# moments inside an operator: bytes that it holds beside its operands and result at each of them, the largest unknown
Workspaces = Mapping[Any, Callable[..., tuple[Any, ...]]]

# channels up to which channel mix has a kernel on CUDA: kWideMix in csrc/cuda/kernel_params.h
_WIDEST_MIX = 192
# rows and columns of a resized image together, up to which it is small
_SMALL_SIDES = 128


def workspaces_on(device_type: str) -> Workspaces:
    """Operator → bytes it holds inside at its moments on a kind of device, from its result and its arguments.

    Sizes may be symbols, which is why the moments aren't compared here.
    """
    return {"cpu": _CPU, "cuda": _CUDA}.get(device_type, {})


def buffers_of(
    func: Any, out: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes of the blocks that a call on the CPU takes for itself: given back before its result has a place, and behind that."""
    if func is torch.ops.aten.convolution.default:
        return convolution_buffers(out, *args)
    workspace = _CPU.get(func)
    most = 0 if workspace is None else max(workspace(out, *args, **kwargs), default=0)
    return (), (int(most),) if most > 0 else ()


def _batch_norm_backward_bytes(
    out: tuple[Tensor | None, ...], grad: Tensor, x: Tensor, *_rest: object
) -> tuple[Any, ...]:
    """The gradient before its mean is taken off, of images that lie alike (``batch_norm_backward_cpu_template`` of 2.13)."""
    alike = (grad.is_contiguous() and x.is_contiguous()) or (is_channels_last(grad) and is_channels_last(x))
    return (nbytes(x) if alike and out[0] is not None else 0,)


def _layer_norm_bytes(_out: object, x: Tensor, *_rest: object) -> tuple[Any, ...]:
    return (_scattered_bytes(x),)


def _layer_norm_backward_bytes(_out: object, grad: Tensor, x: Tensor, *_rest: object) -> tuple[Any, ...]:
    return (_scattered_bytes(grad) + _scattered_bytes(x),)


def _scattered_bytes(tensor: Tensor) -> Any:
    """The dense copy of rows that don't lie one behind the other; symbolic steps are taken for dense."""
    dense = any(isinstance(step, torch.SymInt) for step in tensor.stride()) or tensor.is_contiguous()
    return 0 if dense else nbytes(tensor)


def _product_bytes(out: Tensor, *factors: object) -> tuple[Any, ...]:
    """Factors of another type, such as masks, are brought to that of the product first."""
    tensors = [factor for factor in factors if isinstance(factor, Tensor) and factor.dim() > 0]
    return (sum(out.element_size() * factor.numel() for factor in tensors if factor.dtype != out.dtype),)


def _resize_bytes(out: Tensor, x: Tensor, *_rest: object) -> tuple[Any, ...]:
    """Small results are computed in channels-last memory (``_use_vectorized_kernel_cond_2d`` in UpSampleKernel.cpp of 2.13)."""
    sides = out.size(2) + out.size(3)
    if isinstance(sides, torch.SymInt) or sides > _SMALL_SIDES or is_channels_last(x):
        return (0,)
    return (nbytes(x) + nbytes(out),)


def _pool_bytes(_out: object, x: Tensor, *_rest: object) -> tuple[Any, ...]:
    """Of an image cut out of wider pixels a dense copy is pooled."""
    cut_out = has_neighbouring_channels(x) and isinstance(x.stride(3), int) and x.stride(3) != x.size(1)
    return (nbytes(x) if cut_out else 0,)


def _safe_softmax_bytes(out: Tensor, *_: object) -> tuple[Any, ...]:
    """Which weights' scores are −Inf, a byte each."""
    return (out.numel(),)


def _roll_bytes(out: Tensor, _x: Tensor, shifts: list[Any], *_rest: object) -> tuple[Any, ...]:
    """One dimension after the other, all results alive (``roll_common`` in ATen/native/TensorTransformations.h of 2.13)."""
    return (max(len(shifts) - 1, 0) * nbytes(out),)


def _channel_mix_bytes(_out: Tensor, x_k: Tensor, _x_r: Tensor, key: Tensor, *_: object) -> tuple[Any, ...]:
    return (extension.channel_mix_held(*_mix_sizes(x_k, key)),)


def _channel_mix_backward_bytes(
    _out: object, _grad: Tensor, x_k: Tensor, _x_r: Tensor, key: Tensor, *_: object
) -> tuple[Any, ...]:
    held: tuple[Any, ...] = extension.channel_mix_backward_held(*_mix_sizes(x_k, key))
    return held


def _channel_mix_cuda_bytes(out: Tensor, x_k: Tensor, _x_r: Tensor, key: Tensor, *_: object) -> tuple[Any, ...]:
    if x_k.element_size() == 2 and x_k.size(2) <= _WIDEST_MIX and x_k.size(2) % 8 == key.size(0) % 8 == 0:
        return (0,)
    # hidden units beside what they give; the gates are the result
    return (_hidden_bytes(x_k, key) + nbytes(out),)


def _channel_mix_backward_cuda_bytes(
    _out: object, _grad: Tensor, x_k: Tensor, _x_r: Tensor, key: Tensor, *_: object
) -> tuple[Any, ...]:
    # gradients before and inside the gate, squares and the gradients of hidden units
    return (2 * (nbytes(x_k) + _hidden_bytes(x_k, key)),)


def _hidden_bytes(x_k: Tensor, key: Tensor) -> Any:
    return x_k.size(0) * x_k.size(1) * key.size(0) * x_k.element_size()


def _mix_sizes(x_k: Tensor, key: Tensor) -> tuple[int, int, int, str]:
    """As the extension asks for them.

    Scratch stops growing with the tokens, which is no polynomial: what a symbolic image holds is that of the image which
    stands for it, 7 × 8 strides. There the early layers, where the peak is, have reached the most.
    """
    tokens = x_k.size(0) * x_k.size(1)
    count = tokens.node.hint if isinstance(tokens, torch.SymInt) else tokens
    return int(count), int(x_k.size(2)), int(key.size(0)), str(x_k.dtype).removeprefix("torch.")


_CPU: Workspaces = {
    torch.ops.aten.convolution.default: convolution_bytes,
    torch.ops.aten.convolution_backward.default: convolution_backward_bytes,
    torch.ops.aten.native_batch_norm_backward.default: _batch_norm_backward_bytes,
    torch.ops.aten.native_layer_norm.default: _layer_norm_bytes,
    torch.ops.aten.native_layer_norm_backward.default: _layer_norm_backward_bytes,
    torch.ops.aten.mul.Tensor: _product_bytes,
    torch.ops.aten.upsample_nearest2d.default: _resize_bytes,
    torch.ops.aten._upsample_nearest_exact2d.default: _resize_bytes,
    torch.ops.aten.upsample_bilinear2d.default: _resize_bytes,
    torch.ops.aten.max_pool2d_with_indices.default: _pool_bytes,
    torch.ops.aten.avg_pool2d.default: _pool_bytes,
    torch.ops.aten.roll.default: _roll_bytes,
    torch.ops.aten._safe_softmax.default: _safe_softmax_bytes,
    torch.ops.sola.channel_mix.default: _channel_mix_bytes,
    torch.ops.sola.channel_mix_backward.default: _channel_mix_backward_bytes,
}
_CUDA: Workspaces = {
    torch.ops.aten.roll.default: _roll_bytes,
    torch.ops.aten._safe_softmax.default: _safe_softmax_bytes,
    torch.ops.sola.channel_mix.default: _channel_mix_cuda_bytes,
    torch.ops.sola.channel_mix_backward.default: _channel_mix_backward_cuda_bytes,
}
