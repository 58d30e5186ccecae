"""Which routes stand beside which operator: ours first, then what PyTorch offers, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sola_profile.kernel_case import CHANNEL_MIX, PLAIN_RETENTION, KernelCase
from sola_profile.peers.attention import eager_linear, eager_softmax, fused_softmax
from sola_profile.peers.decay import chunked, masked
from sola_profile.peers.shift import eager_shift_mix
from sola_profile.peers.wkv import cumulative, token_loop
from sola_vision import ops
from sola_vision.ops.channel_mix import composed as composed_mix
from sola_vision.ops.layer_norm import composed as composed_norm

# a tensor, or of mixes one for each
Result = Tensor | tuple[Tensor, ...]
Function = Callable[..., Result]

OURS, COMPILED = "ours", "compile"

# an N × N buffer beyond this is no choice that a user would make
MOST_QUADRATIC_BYTES = 2**30
# a loop over more tokens than this takes longer than all else together
MOST_LOOPED_TOKENS = 4096


@dataclass(frozen=True)
class Route:
    """One way to compute a case.

    ``function``: takes the inputs of the case in order. ``refusal``: why it can't be run on a case, or an empty
    string. ``compiled``: to be run under ``torch.compile``. ``quadratic``: whether its time grows with N².
    """

    name: str
    what: str
    function: Function
    refusal: Callable[[KernelCase], str] = lambda _: ""
    compiled: bool = False
    quadratic: bool = False

    def size(self, case: KernelCase) -> int:
        """What the time is proportional to, about: B·H·N·D, times N where it is quadratic, and times C of whole maps."""
        shape = case.shape
        factor = shape.dim if case.op == CHANNEL_MIX else shape.tokens if self.quadratic else 1
        return shape.batch * shape.heads * shape.tokens * shape.dim * factor


def _too_large(case: KernelCase) -> str:
    shape = case.shape
    size = shape.batch * shape.heads * shape.tokens**2 * getattr(torch, case.dtype).itemsize
    if size <= MOST_QUADRATIC_BYTES:
        return ""
    return f"each N × N buffer would take {size / 2**30:.2f} GiB, more than {MOST_QUADRATIC_BYTES / 2**30:.0f} GiB"


def _looped(case: KernelCase) -> str:
    tokens = case.shape.tokens
    return "" if tokens <= MOST_LOOPED_TOKENS else f"a loop over {tokens:,} tokens, more than {MOST_LOOPED_TOKENS:,}"


def compilable_chunks(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, **options: Any) -> Tensor:
    """``chunked`` with chunks of whole vectors.

    With chunks of 49 the backward that torch 2.13 generates for CPUs writes past its buffers.
    """
    return chunked(q, k, v, decay, length=max(64, q.size(3) // 16 * 16), **options)


def _decay_routes(**options: str | bool) -> tuple[Route, ...]:
    """``options``: of ``ops.linear_attention``, which the routes have, too."""

    def call(function: Callable[..., Tensor]) -> Function:
        return lambda q, k, v, decay: function(q, k, v, decay=decay, **options)

    return (
        Route(OURS, "sola_vision.ops.linear_attention", call(ops.linear_attention)),
        Route("masked", "all pairs, masked with γ^|i−j|", call(masked), _too_large, quadratic=True),
        Route("chunked", "batched matrix products over chunks", call(chunked)),
        Route(COMPILED, "torch.compile of chunked", call(compilable_chunks), compiled=True),
    )


ROUTES: Mapping[str, tuple[Route, ...]] = {
    "softmax_attention": (
        Route(OURS, "sola_vision.ops.softmax_attention", ops.softmax_attention, quadratic=True),
        Route("SDPA", "F.scaled_dot_product_attention", fused_softmax, quadratic=True),
        Route("eager", "q kᵀ, softmax, · v", eager_softmax, _too_large, quadratic=True),
        Route(COMPILED, "torch.compile of eager", eager_softmax, _too_large, compiled=True, quadratic=True),
    ),
    "linear_attention": (
        Route(OURS, "sola_vision.ops.linear_attention", ops.linear_attention),
        Route("eager", "φ(k)ᵀ v, φ(q) S, normaliser", eager_linear),
        Route(COMPILED, "torch.compile of eager", eager_linear, compiled=True),
    ),
    "decay_attention": _decay_routes(causal=False),
    "causal_decay_attention": _decay_routes(causal=True),
    PLAIN_RETENTION: _decay_routes(causal=True, feature_map="identity", normalize=False),
    "wkv": (
        Route(OURS, "sola_vision.ops.wkv", ops.wkv),
        Route("cumsum", "running sums of e^(k ± i·w)", cumulative),
        Route("loop", "the recurrence, token by token", token_loop, _looped),
        Route(COMPILED, "torch.compile of cumsum", cumulative, compiled=True),
    ),
    "shift_mix": (
        Route(OURS, "sola_vision.ops.shift_mix", ops.shift_mix),
        Route("eager", "padded copies, a join, lerps", eager_shift_mix),
        Route(COMPILED, "torch.compile of eager", eager_shift_mix, compiled=True),
    ),
    "layer_norm": (
        Route(OURS, "sola_vision.ops.layer_norm", ops.layer_norm),
        Route("PyTorch", "F.layer_norm", composed_norm),
        Route(COMPILED, "torch.compile of it", composed_norm, compiled=True),
    ),
    "channel_mix": (
        Route(OURS, "sola_vision.ops.channel_mix", ops.channel_mix),
        Route("eager", "three linear maps, a squared ReLU, a gate", composed_mix),
        Route(COMPILED, "torch.compile of eager", composed_mix, compiled=True),
    ),
}


def routes(op: str, *, compiled: bool) -> tuple[Route, ...]:
    """The routes of an operator, with or without those under ``torch.compile``."""
    return tuple(route for route in ROUTES[op] if compiled or not route.compiled)


def compile_route(route: Route) -> Function:
    """The function of a route, under ``torch.compile`` where it says so; every call forgets what was compiled before.

    Forgetting keeps the number of shapes that one function is compiled for under the limit at which torch gives up.
    """
    if not route.compiled:
        return route.function
    torch.compiler.reset()
    # a copy of the function: what is compiled is found by the function
    return torch.compile(route.function, dynamic=False, fullgraph=True)
