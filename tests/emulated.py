"""The CUDA kernels on the CPU: the operators' Python face over ``torch.ops.sola_emulated``, thread by thread.

Same sources as the CUDA build (``csrc/cuda``), compiled with ``tests/emulator`` in the place of the CUDA runtime. It shows
wrong indices, missing barriers and unwritten memory; it says nothing about speed, and isn't a GPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from emulator.build import build
from torch import Tensor

from sola_vision.ops.linear_attention import CHUNK


@cache
def library() -> Any:
    """``torch.ops.sola_emulated``, compiled on first use."""
    torch.ops.load_library(str(build()))
    return torch.ops.sola_emulated


class _Op(torch.autograd.Function):
    """An op with its backward: ``kept`` says which of its outputs the backward wants, after the inputs."""

    @staticmethod
    def forward(ctx: Any, name: str, options: tuple[Any, ...], *inputs: Tensor) -> Tensor:
        outputs = getattr(library(), name)(*inputs, *options)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        ctx.name, ctx.options = name, () if name == "wkv" else options
        ctx.save_for_backward(*inputs, *(outputs[1:] if name == "linear_attention" else outputs))
        return outputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grads = getattr(library(), f"{ctx.name}_backward")(grad, *ctx.saved_tensors, *ctx.options)
        return (None, None, *grads)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, causal: bool = False) -> Tensor:
    return _Op.apply("softmax_attention", (q.size(-1) ** -0.5 if scale is None else scale, causal), q, k, v)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "elu1",
    decay: Tensor | None = None,
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    if decay is None and not causal:
        return _Op.apply("linear_attention", (feature_map, normalize, eps), q, k, v)
    return _Chunked.apply((feature_map, causal, normalize, eps, CHUNK), q, k, v, decay)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: tuple[Any, ...], q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None) -> Tensor:
        out, normaliser = library().chunked_linear_attention(q, k, v, decay, *options)
        ctx.options = options
        ctx.save_for_backward(q, k, v, decay, out, normaliser)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[4]
        *grads, grad_decay = library().chunked_linear_attention_backward(grad, *ctx.saved_tensors, *ctx.options, wanted)
        return (None, *grads, grad_decay if wanted else None)


def wkv(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, *, decay_per: str = "sequence") -> Tensor:
    rate = decay / max(k.size(1), 1) if decay_per == "sequence" else decay
    if not any(tensor.requires_grad for tensor in (k, v, decay, bonus)):  # nothing is kept for a backward
        out: Tensor = library().wkv(k, v, rate, bonus, False)[0]
        return out
    return _Op.apply("wkv", (True,), k, v, rate, bonus)


def channel_mix(x_k: Tensor, x_r: Tensor, key: Tensor, value: Tensor, receptance: Tensor) -> Tensor:
    return _Op.apply("channel_mix", (), x_k, x_r, key, value, receptance)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        out: Tensor = library().layer_norm(x, weight, bias, eps)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (*library().layer_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    return _LayerNorm.apply(x, weight, bias, eps)


class _ShiftMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ratios: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, ratios)
        return tuple(library().shift_mix(x, ratios))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        grad_x, grad_ratios = library().shift_mix_backward(grads, *ctx.saved_tensors)
        return grad_x, grad_ratios


def shift_mix(x: Tensor, ratios: Tensor) -> tuple[Tensor, ...]:
    return _ShiftMix.apply(x, ratios)
