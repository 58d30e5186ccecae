"""Bytes that operators allocate inside, where they are a visible share of a step's memory.

oneDNN computes a CPU convolution in blocked copies that go through PyTorch's allocator. Read off the allocations of
torch 2.13 (``tests/test_memory.py`` checks it): first the copies of input and weight and a blocked output live
together, then the blocked and the plain output. With a single thread PyTorch keeps some small convolutions to itself
and needs less. Convolutions on CUDA choose their workspace at run time; none is predicted there.

Left out, because they are small: thread scratch of the compiled operators (a few tiles per thread), and what oneDNN
keeps for itself in half precision (up to about 1 MB).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Workspaces = Mapping[Any, Callable[..., int]]

# oneDNN rounds channels up to its block
_BLOCK = 16
# images of so few float32 channels are read as they are
_PLAIN_CHANNELS = 3


def workspaces_on(device_type: str) -> Workspaces:
    """Operator → bytes it allocates inside on a kind of device, from its result and its arguments."""
    return _CPU if device_type == "cpu" else {}


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _blocked_bytes(tensor: Tensor) -> int:
    """A copy of ``(B, C, …)`` with C rounded up to the block."""
    channels = tensor.size(1)
    return _nbytes(tensor) // channels * (-(-channels // _BLOCK) * _BLOCK) if channels else 0


def _convolution_bytes(out: Tensor, x: Tensor, weight: Tensor, *_: object) -> int:
    plain = x.dtype == torch.float32 and x.size(1) <= _PLAIN_CHANNELS
    copies = _nbytes(weight) + (0 if plain else _blocked_bytes(x))
    # the blocked output stands beside the copies, then beside the plain output, which is counted already
    return max(copies + _blocked_bytes(out) - _nbytes(out), _blocked_bytes(out))


def _convolution_backward_bytes(_out: object, grad_out: Tensor, x: Tensor, weight: Tensor, *_: object) -> int:
    return _blocked_bytes(grad_out) + _blocked_bytes(x) + _nbytes(weight)


_CPU: Workspaces = {
    torch.ops.aten.convolution.default: _convolution_bytes,
    torch.ops.aten.convolution_backward.default: _convolution_backward_bytes,
}
