"""Operators as a real pass runs them, where PyTorch's Python for compilers and symbolic sizes does something else.

``interpolate`` is written out there in some ten operators that hold a table of indices and four or sixteen copies of the
result; a real pass has one kernel that writes the result. ``dropout`` copies its input where it drops nothing; a real pass
hands it on. Views of a single image have other steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp.decompositions import upsample_compute_output_size
from torch.utils._python_dispatch import _disable_current_modes

from sola_profile.cost.convolutions import is_channels_last

_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
_MODES = ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
_RESIZING = (*(f"upsample_{mode}" for mode in _MODES), *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)))
_OTHERS = ("dropout", "hardshrink", "softshrink")
_BATCH_NORM_GRADIENT = torch.ops.aten.native_batch_norm_backward.default
_LAYER_NORM_GRADIENT = torch.ops.aten.native_layer_norm_backward.default
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten._reshape_alias.default)


def parts_as_run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a composite operator gives, computed in the parts that run; ``NotImplemented`` for one with kernels.

    The gradient of SiLU has both: parts for any device, and kernels of those that models run on.
    """
    known = torch._C._dispatch_has_kernel_for_dispatch_key
    if known(func.name(), "CompositeImplicitAutograd") and not known(func.name(), "CPU"):
        return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
    return NotImplemented


@contextmanager
def kernels_as_run() -> Iterator[None]:
    """Under PyTorch's Python dispatcher, let operators reach their kernels."""
    packets = [getattr(torch.ops.aten, name) for name in _RESIZING]
    overloads = [overload for packet in packets for overload in (packet.default, packet.vec)]
    overloads += [getattr(torch.ops.aten, name).default for name in _OTHERS]
    saved = [(overload, dict(overload.py_kernels)) for overload in overloads]
    try:
        for overload, _ in saved:
            for key in _KEYS:
                overload.py_kernels.pop(key, None)
            if overload._overloadname == "vec":
                overload.py_kernels.update(dict.fromkeys(_KEYS, _resized(overload._overloadpacket.default)))
            overload._dispatch_cache.clear()
        yield
    finally:
        for overload, kernels in saved:
            overload.py_kernels.clear()
            overload.py_kernels.update(kernels)
            overload._dispatch_cache.clear()


def _resized(kernel: Any) -> Callable[..., Tensor]:
    """An overload that takes a size or factors, by the one that takes a size; sizes may be symbols."""

    def resized(image: Tensor, size: Any, *options: Any, scale_factors: Any = None) -> Tensor:
        *flags, factors = options if scale_factors is None else (*options, scale_factors)
        sides = upsample_compute_output_size(image.size(), size, factors)
        result: Tensor = kernel(image, sides, *flags, *(factors or [None] * len(sides)))
        return result

    return resized


def stepped_as_run(func: Any, args: tuple[Any, ...], out: Any) -> Any:
    """An image made of one image's tokens, ``(1, N, C)`` → ``(1, C, N)`` → ``(1, C, H, W)``, with the steps of the real run.

    There the step to the next image, which doesn't exist, is C, not H·W·C (``computeStride`` in ATen/TensorUtils.cpp), and
    a convolution doesn't take such an image for one in channels-last memory. ``out``: what ``func`` returned.
    """
    tokens = args[0] if func in _VIEWS else None
    if tokens is None or out.dim() != 4 or not _is_transposed_image(tokens) or not _is(out.size(1), tokens.size(1)):
        return out
    with _disable_current_modes():
        image: Tensor = torch.as_strided(out, out.shape, (out.size(1), *out.stride()[1:]))
    return image


def laid_out_as_run(func: Any, args: tuple[Any, ...], out: Any) -> Any:
    """Results of convolutions in the memory format of the image, as on real devices; on ``meta`` they lose channels-last.

    There gradients of layer norms are dense, whatever the steps of the input are, and those of batch norms lie like the image.
    """
    if func is torch.ops.aten.convolution.default:
        return _like(args[0], out)
    if func is torch.ops.aten.convolution_backward.default:
        return (_like(args[1], out[0]), _like(args[1], out[1]), *out[2:])
    if func in (_BATCH_NORM_GRADIENT, _LAYER_NORM_GRADIENT) and out[0] is not None:
        pixels = func is _BATCH_NORM_GRADIENT and is_channels_last(args[1])
        memory = torch.channels_last if pixels else torch.contiguous_format
        return (torch.empty_like(out[0], memory_format=memory), *out[1:])
    return out


def _like(image: Tensor, result: Tensor | None) -> Tensor | None:
    if result is None or result.dim() != 4 or not is_channels_last(image):
        return result
    return torch.empty_like(result, memory_format=torch.channels_last)


def _is_transposed_image(x: Tensor) -> bool:
    """``(1, C, N)`` with channels side by side."""
    return x.dim() == 3 and _is(x.size(0), 1) and _is(x.stride(1), 1)


def _is(size: int | torch.SymInt, number: int | torch.SymInt) -> bool:
    """Asks symbols nothing."""
    return isinstance(size, int) and isinstance(number, int) and size == number
