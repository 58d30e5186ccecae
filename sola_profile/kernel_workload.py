"""From a kernel case to tensors and steps: the inputs that all routes share, forward or forward and backward."""

# B batch, N tokens, H heads, D head dim, C channels

from __future__ import annotations

import torch
from torch import Tensor

from sola_profile.kernel_case import (
    BOTH,
    CHANNEL_MIX,
    DECAYED,
    HIDDEN_RATIO,
    LAYER_NORM,
    MIX_POWERS,
    SHIFT_MIX,
    WITHOUT_HEADS,
    WKV,
    KernelCase,
)
from sola_profile.peers.table import Function, Result
from sola_profile.workload import SEED, Step

Inputs = tuple[Tensor, ...]


def make_inputs(case: KernelCase, device: str = "cpu") -> Inputs:
    """Random inputs as layers hand them over; decays and bonuses in float32 (float64 with float64).

    Attention takes q, k, v ``(B, N, H, D)``, the three slices of one projection, and its decay RetNet's
    ``1 − 2^(−5−h)``. WKV takes k, v ``(B, N, C)`` and Vision-RWKV's initial decay and bonus; mixes
    take x ``(B, H, W, C)`` and shares ``(K, C)`` that rise over the channels as Vision-RWKV's do. A norm takes
    x ``(B, N, C)``, its weight and its bias ``(C,)``. A channel mix takes x_k, x_r ``(B, N, C)`` and three matrices,
    scaled so that a product is about as large as what goes in.
    """
    dtype: torch.dtype = getattr(torch, case.dtype)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    shape = case.shape
    # on the device, where a hundred million numbers take no time
    home = device if device != "meta" else "cpu"
    generator = torch.Generator(home).manual_seed(SEED)

    def normal(*sizes: int) -> Tensor:
        if device == "meta":
            return torch.empty(sizes, dtype=dtype, device=device)
        return torch.randn(sizes, generator=generator, device=home).to(dtype)

    if case.op == SHIFT_MIX:
        place = torch.arange(shape.dim, dtype=sums) / shape.dim
        shares = torch.stack([place**power for power in MIX_POWERS])
        return normal(shape.batch, *shape.grid, shape.dim), shares.to(device)
    if case.op == LAYER_NORM:
        return normal(shape.batch, shape.tokens, shape.dim), normal(shape.dim), normal(shape.dim)
    if case.op == CHANNEL_MIX:
        tokens, hidden = (shape.batch, shape.tokens, shape.dim), HIDDEN_RATIO * shape.dim
        maps = ((hidden, shape.dim), (shape.dim, hidden), (shape.dim, shape.dim))
        return normal(*tokens), normal(*tokens), *(normal(*sizes) * sizes[1] ** -0.5 for sizes in maps)
    if case.op == WKV:
        decay = torch.linspace(-5, 3, shape.dim, dtype=sums)
        bonus = -1.2 + 0.5 * (torch.arange(shape.dim, dtype=sums).remainder(3) - 1)
        sizes = (shape.batch, shape.tokens, shape.dim)
        return normal(*sizes), normal(*sizes), decay.to(device), bonus.to(device)
    inputs = normal(shape.batch, shape.tokens, 3, shape.heads, shape.dim).unbind(2)
    if case.op in DECAYED:
        reach = torch.arange(shape.heads, dtype=sums) + 5
        inputs += ((1 - 2.0**-reach).to(device),)
    return inputs


def make_step(case: KernelCase, function: Function, inputs: Inputs) -> Step:
    """One call under ``inference_mode``, or forward and backward to the gradients of all inputs."""
    if case.mode != BOTH:

        def forward() -> None:
            with torch.inference_mode():
                function(*inputs)

        return forward
    # unused: with one token there is no decay
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    with torch.no_grad():
        like = leaves[0] if case.op in WITHOUT_HEADS else leaves[2]
        grad = torch.ones_like(like, memory_format=torch.contiguous_format)

    def both() -> None:
        outputs = tensors_of(function(*leaves))
        torch.autograd.grad(outputs, leaves, (grad,) * len(outputs), allow_unused=True)

    return both


def tensors_of(result: Result) -> tuple[Tensor, ...]:
    """What a route gives, in the same form for all of them."""
    return (result,) if isinstance(result, Tensor) else result
