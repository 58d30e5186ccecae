"""Bytes that operators allocate inside, where they are a visible share of a step's memory.

oneDNN computes a CPU convolution in blocked copies that go through PyTorch's allocator. Read off the allocations of
torch 2.13 (``tests/test_memory.py`` checks it): first the copies of input and weight and a blocked output live
together, then the blocked and the plain output. Images of fewer channels than a block are read as they are, and images in
channels-last memory are read and written as they are. With a single thread PyTorch keeps 1 × 1 convolutions of few images to
itself, which need nothing, and small ones of any kind, which unfold their input; so do all in float64, which oneDNN doesn't
know, and in half precision where the processor lacks what it wants.
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

from sola_vision.ops._extension import extension

# moments inside an operator: bytes that it holds beside its operands and result at each of them, the largest unknown
Workspaces = Mapping[Any, Callable[..., tuple[Any, ...]]]

# oneDNN rounds channels up to its block, a vector of float32
_BLOCK = 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8
# who knows whether the processor has what oneDNN wants for them; builds of torch without oneDNN have neither
_HALF = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
# channels up to which channel mix has a kernel on CUDA: kWideMix in csrc/cuda/kernel_params.h
_WIDEST_MIX = 192
# shares of a depthwise weight's gradient in channels-last memory, added up in the end, where the kernel isn't small; with
# AVX2 and AVX-512, whatever the threads
_DEPTHWISE_SHARES = _BLOCK**2
_SMALL_KERNEL = 3
# rows and columns of a resized image together, up to which it is small
_SMALL_SIDES = 128


def workspaces_on(device_type: str) -> Workspaces:
    """Operator → bytes it holds inside at its moments on a kind of device, from its result and its arguments.

    Sizes may be symbols, which is why the moments aren't compared here.
    """
    return {"cpu": _CPU, "cuda": _CUDA}.get(device_type, {})


def _nbytes(tensor: Tensor) -> Any:
    return tensor.numel() * tensor.element_size()


def _blocked_bytes(tensor: Tensor) -> Any:
    """A copy of ``(B, C, …)`` with C rounded up to the block."""
    channels = tensor.size(1)
    return _nbytes(tensor) // channels * _blocked(channels) if channels else 0


def _blocked(channels: Any) -> Any:
    return -(-channels // _BLOCK) * _BLOCK


def _convolution_bytes(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Any, ...]:
    _bias, stride, padding, dilation, transposed, _output_padding, groups = rest
    if x.dim() == 4 and not transposed and not _goes_to_onednn(x, weight, (stride, dilation), groups):
        # groups are cut out and computed one by one, and joined
        part = _nbytes(x) // groups if groups > 1 else 0
        return _unfolded_bytes(out, weight, stride, padding) + part, _nbytes(out) if groups > 1 else 0
    if is_channels_last(x):
        return (_weight_copies(weight) * _nbytes(weight),)
    gathers = max(weight.shape[2:]) == 1 < max(stride) and groups == 1 and x.dtype == torch.float32
    plain = groups == 1 and x.size(1) < _BLOCK and not gathers
    copies = _nbytes(weight) + (0 if plain else _blocked_bytes(x))
    if gathers:
        # every thread gathers the pixels of an image that a strided 1 × 1 convolution looks at
        copies += torch.get_num_threads() * (_nbytes(out) // (out.size(0) * out.size(1)) * _blocked(x.size(1)))
    # the blocked output stands beside the copies, then beside the plain output, which is counted already
    before = _plain_copy_bytes(x)
    return before + copies + _blocked_bytes(out) - _nbytes(out), before + _blocked_bytes(out)


def _weight_copies(weight: Tensor) -> int:
    """For an image in channels-last memory: oneDNN's own, and one in channels-last memory where the weight isn't."""
    return 1 if weight.is_contiguous(memory_format=torch.channels_last) else 2


def _unfolded_bytes(out: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Any:
    """Every window of the input as a column, one group's; ``out``: its result, or that result's gradient."""
    if max(weight.shape[2:]) == 1 == max(stride) and not any(padding):
        return 0
    return out.size(0) * out.size(2) * out.size(3) * weight[0].numel() * out.element_size()


def is_channels_last(x: Tensor) -> bool:
    """As PyTorch says (``is_channels_last_strides_2d`` in c10/core/MemoryFormat.h). Asks symbolic strides nothing."""
    if not _has_neighbouring_channels(x):
        return False
    # a view may have any step from a single image to the next
    to_next, row = x.stride(0), x.stride(2)
    if isinstance(row, torch.SymInt):
        return isinstance(to_next, torch.SymInt)
    return isinstance(to_next, torch.SymInt) or to_next >= row * x.size(2)


def _has_neighbouring_channels(x: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side; of one channel nobody can tell."""
    step = x.stride(1) if x.dim() == 4 else 0
    return isinstance(step, int) and step == 1 and x.size(1) > 1


def _plain_copy_bytes(x: Tensor) -> Any:
    """What oneDNN's copies are made from, where the image itself isn't row behind row."""
    if any(isinstance(step, torch.SymInt) for step in x.stride()):
        return _nbytes(x) if _has_neighbouring_channels(x) else 0
    return 0 if x.is_contiguous() else _nbytes(x)


def _goes_to_onednn(x: Tensor, weight: Tensor, steps: tuple[list[int], list[int]], groups: int) -> bool:
    """The rule of PyTorch (``use_mkldnn`` in ATen/native/Convolution.cpp of 2.13).

    A symbolic image counts as large: asking would bind the whole formula to the answer, and small maps are seldom where
    the peak is.
    """
    if x.dtype != torch.float32:
        return _known_to_onednn(x.dtype)
    stepped = any(step != 1 for side in steps for step in side)
    large_kernel = min(weight.shape[2:]) > 3
    worthwhile = stepped or x.size(0) >= 16 or max(weight.shape[2:]) != 1 or torch.get_num_threads() > 1
    large = isinstance(x.numel(), torch.SymInt) or x.numel() > 20480
    return worthwhile and (groups > 1 or large_kernel or x.size(0) > 1 or large)


def _known_to_onednn(dtype: torch.dtype) -> bool:
    supported = getattr(torch.ops.mkldnn, _HALF.get(dtype, ""), None)
    return dtype == torch.float32 or bool(supported is not None and supported())


def _convolution_backward_bytes(
    _out: object, grad_out: Tensor, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Any, ...]:
    bias, stride, padding, _dilation, transposed, _output_padding, groups = rest[:7]
    if not _known_to_onednn(x.dtype) and not transposed:
        parts = (_nbytes(x) + _nbytes(grad_out)) // groups if groups > 1 else 0
        # the gradient of the bias sums up a copy in single precision, where there is one
        single = 4 * grad_out.numel() // groups if x.element_size() == 2 and bias is not None else 0
        return _unfolded_bytes(grad_out, weight, stride, padding) + parts, single + parts
    # in half precision some of the gradients are blocked all the same
    if x.dtype == torch.float32 and is_channels_last(x):
        # the weight's copies, and its gradient before it is the result
        copies = 1 + _weight_copies(weight)
        wide_depthwise = groups == weight.size(0) == x.size(1) and max(weight.shape[2:]) > _SMALL_KERNEL
        return ((copies + (_DEPTHWISE_SHARES if wide_depthwise else 0)) * _nbytes(weight),)
    return (_blocked_bytes(grad_out) + _blocked_bytes(x) + _nbytes(weight),)


def _resize_bytes(out: Tensor, x: Tensor, *_rest: object) -> tuple[Any, ...]:
    """Small results are computed in channels-last memory (``_use_vectorized_kernel_cond_2d`` in UpSampleKernel.cpp of 2.13)."""
    sides = out.size(2) + out.size(3)
    if isinstance(sides, torch.SymInt) or sides > _SMALL_SIDES or is_channels_last(x):
        return (0,)
    return (_nbytes(x) + _nbytes(out),)


def _pool_bytes(_out: object, x: Tensor, *_rest: object) -> tuple[Any, ...]:
    """Of an image cut out of wider pixels a dense copy is pooled."""
    cut_out = _has_neighbouring_channels(x) and isinstance(x.stride(3), int) and x.stride(3) != x.size(1)
    return (_nbytes(x) if cut_out else 0,)


def _safe_softmax_bytes(out: Tensor, *_: object) -> tuple[Any, ...]:
    """Which weights' scores are −Inf, a byte each."""
    return (out.numel(),)


def _roll_bytes(out: Tensor, _x: Tensor, shifts: list[Any], *_rest: object) -> tuple[Any, ...]:
    """One dimension after the other, all results alive (``roll_common`` in ATen/native/TensorTransformations.h of 2.13)."""
    return (max(len(shifts) - 1, 0) * _nbytes(out),)


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
    return (_hidden_bytes(x_k, key) + _nbytes(out),)


def _channel_mix_backward_cuda_bytes(
    _out: object, _grad: Tensor, x_k: Tensor, _x_r: Tensor, key: Tensor, *_: object
) -> tuple[Any, ...]:
    # gradients before and inside the gate, squares and the gradients of hidden units
    return (2 * (_nbytes(x_k) + _hidden_bytes(x_k, key)),)


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
    torch.ops.aten.convolution.default: _convolution_bytes,
    torch.ops.aten.convolution_backward.default: _convolution_backward_bytes,
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
