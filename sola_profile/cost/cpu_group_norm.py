"""Group norms of images in channels-last memory on the meta device as the CPU runs them.

PyTorch copies such an image, and the gradient that comes back, into rows before it looks for a kernel, unless their device
is the CPU (torch 2.13, ``group_norm`` in ATen/native/group_norm.cpp and its formula in tools/autograd/derivatives.yaml).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sola_profile.cost.convolutions import is_channels_last


@contextmanager
def cpu_group_norm() -> Iterator[None]:
    """Group norms on meta leave images in channels-last memory as they are."""
    original = functional.group_norm

    def group_norm(
        input: Tensor,  # noqa: A002
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        if not (input.is_meta and is_channels_last(input)):
            return original(input, num_groups, weight, bias, eps)
        normed: Tensor = _GroupNorm.apply(input, weight, bias, num_groups, eps)  # type: ignore[no-untyped-call]
        return normed

    functional.group_norm = group_norm
    try:
        yield
    finally:
        functional.group_norm = original


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        sizes = (image.size(0), image.size(1), image.size(2) * image.size(3), groups)
        out, mean, deviation = torch.ops.aten.native_group_norm(image, weight, bias, *sizes, eps)
        ctx.save_for_backward(image, weight, mean, deviation)
        ctx.sizes = sizes
        return torch.empty_like(out, memory_format=torch.channels_last) if not is_channels_last(out) else out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, weight, mean, deviation = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        mask = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_group_norm_backward(grad, image, mean, deviation, weight, *ctx.sizes, mask)
        return (*found, None, None)
