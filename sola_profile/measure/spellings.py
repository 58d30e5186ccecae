"""Attention and convolutions in many spellings, through every counter: which can be trusted on this torch?"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from sola_profile.measure import flop_counter, fvcore_counter
from sola_vision import ops

# B batch, N tokens, H heads, D head dim, C channels
BATCH, TOKENS, HEADS, DIM = 1, 256, 4, 16
CHANNELS = HEADS * DIM
SIDE = 16

FORWARD, BOTH = "forward", "both"

PROJECTIONS = 4 * TOKENS * CHANNELS * CHANNELS
SOFTMAX = PROJECTIONS + 2 * TOKENS * TOKENS * CHANNELS
LINEAR = PROJECTIONS + 2 * TOKENS * CHANNELS * DIM


class _Attention(nn.Module):
    """Four projections around one spelling of attention on ``(B, H, N, D)``."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS, bias=False)
        self.out = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self._attend = attend

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(BATCH, TOKENS, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)
        mixed = self._attend(q, k, v).transpose(1, 2).reshape(BATCH, TOKENS, CHANNELS)
        result: Tensor = self.out(mixed)
        return result


class _MultiHead(nn.Module):
    """``nn.MultiheadAttention``, which takes a fast path in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, HEADS, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return result


def _matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixed: Tensor = (q @ k.transpose(-1, -2) * DIM**-0.5).softmax(-1) @ v
    return mixed


def _einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhnd,bhmd->bhnm", q, k).softmax(-1)
    return torch.einsum("bhnm,bhmd->bhnd", weights, v)


def _linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    mixed: Tensor = q @ (k.transpose(-1, -2) @ v)
    return mixed


def _linear_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    state = torch.einsum("bhnd,bhnv->bhdv", F.elu(k) + 1, v)
    return torch.einsum("bhnd,bhdv->bhnv", F.elu(q) + 1, state)


def _sola(op: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return op(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    return attend


def _sola_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ops.linear_attention(q, k, v, feature_map="elu1")


@dataclass(frozen=True)
class Spelling:
    """A module whose multiply-accumulates are known by hand. ``mode``: what is counted."""

    name: str
    make: Callable[[], nn.Module]
    macs: int
    mode: str = FORWARD

    def __str__(self) -> str:
        return self.name if self.mode == FORWARD else f"{self.name} + backward"


def _convolution(groups: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=groups, bias=False)


def _conv_macs(groups: int) -> int:
    return CHANNELS * (CHANNELS // groups) * 9 * SIDE * SIDE


SPELLINGS: Sequence[Spelling] = (
    Spelling("F.scaled_dot_product_attention", lambda: _Attention(F.scaled_dot_product_attention), SOFTMAX),
    Spelling("q @ k.T, softmax, @ v", lambda: _Attention(_matmul), SOFTMAX),
    Spelling("einsum, softmax, einsum", lambda: _Attention(_einsum), SOFTMAX),
    Spelling("nn.MultiheadAttention", _MultiHead, SOFTMAX),
    Spelling("ops.softmax_attention", lambda: _Attention(_sola(ops.softmax_attention)), SOFTMAX),
    Spelling("linear attention with @", lambda: _Attention(_linear), LINEAR),
    Spelling("linear attention with einsum", lambda: _Attention(_linear_einsum), LINEAR),
    Spelling("ops.linear_attention", lambda: _Attention(_sola(_sola_linear)), LINEAR),
    Spelling("convolution", _convolution(1), _conv_macs(1)),
    Spelling("depthwise convolution", _convolution(CHANNELS), _conv_macs(CHANNELS)),
    # a gradient for the input and one for the weight cost one forward each
    Spelling("convolution", _convolution(1), 3 * _conv_macs(1), BOTH),
    Spelling("depthwise convolution", _convolution(CHANNELS), 3 * _conv_macs(CHANNELS), BOTH),
)


def shape_for(spelling: Spelling) -> tuple[int, ...]:
    """What a spelling takes: tokens ``(B, N, C)``, or an image for convolutions."""
    return (BATCH, CHANNELS, SIDE, SIDE) if "convolution" in spelling.name else (BATCH, TOKENS, CHANNELS)


def _ready(spelling: Spelling, device: str) -> tuple[nn.Module, Tensor]:
    return spelling.make().to(device).eval(), torch.zeros(shape_for(spelling), device=device)


def _step(spelling: Spelling, device: str) -> Callable[[], None]:
    model, image = _ready(spelling, device)

    def step() -> None:
        if spelling.mode == FORWARD:
            with torch.no_grad():
                model(image)
        else:
            model(image.requires_grad_()).sum().backward()

    return step


def flop_counter_on_meta(spelling: Spelling) -> float:
    """``FlopCounterMode`` as this project runs it: on meta, with its own formula for a convolution's backward."""
    return flop_counter.count_step(_step(spelling, "meta")).macs


def flop_counter_on_cpu(spelling: Spelling) -> float:
    """``FlopCounterMode`` as it comes, on CPU tensors."""
    counter, step = FlopCounterMode(display=False), _step(spelling, "cpu")
    with counter:
        step()
    return float(counter.get_total_flops()) / 2


def fvcore_on_meta(spelling: Spelling) -> float | None:
    """What fvcore finds as this project runs it, on meta; it sees the forward pass only."""
    if spelling.mode != FORWARD:
        return None
    return fvcore_counter.count_module(*_ready(spelling, "meta")).macs


def fvcore_on_cpu(spelling: Spelling) -> float | None:
    """What fvcore finds as it comes, on CPU tensors; its matrix products alone."""
    if spelling.mode != FORWARD:
        return None
    from fvcore.nn import FlopCountAnalysis

    model, image = _ready(spelling, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model, (image,))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        with torch.no_grad():
            operators = analysis.by_operator()
    return float(sum(value for name, value in operators.items() if name in fvcore_counter.MATRIX_PRODUCTS))


def profiler_on_cpu(spelling: Spelling) -> float | None:
    """``torch.profiler`` with ``with_flops``, on CPU tensors; it has no formula for a backward."""
    if spelling.mode != FORWARD:
        return None
    # kineto greets on stderr at every start; this is read when its first session begins
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    step = _step(spelling, "cpu")
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as session:
        step()
    products = ("mm", "bmm", "addmm", "baddbmm", "conv2d")
    averages = session.key_averages()
    return float(sum(event.flops for event in averages if event.key.removeprefix("aten::") in products)) / 2
