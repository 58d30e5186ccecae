"""Resizing of images as the kernels do it.

For compilers PyTorch writes ``interpolate`` out in Python, in some ten operators that hold a table of indices and four or
sixteen copies of the result. Nothing of that happens in a real pass, where one kernel writes the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp.decompositions import upsample_compute_output_size

_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
_MODES = ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
_NAMES = (*(f"upsample_{mode}" for mode in _MODES), *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)))


def parts_as_run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a composite operator gives, computed in the parts that run; ``NotImplemented`` for one with kernels."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
    return NotImplemented


@contextmanager
def resizing_by_kernels() -> Iterator[None]:
    """Under PyTorch's Python dispatcher, let the operators of ``interpolate`` reach their kernels."""
    saved = [
        (overload, dict(overload.py_kernels))
        for packet in (getattr(torch.ops.aten, name) for name in _NAMES)
        for overload in (packet.default, packet.vec)
    ]
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
