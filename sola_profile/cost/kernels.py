"""What a kernel case has to do: matrix products, exponentials and bytes, forward or forward and backward."""

# B batch, N tokens, H heads, D head dim, C channels

from __future__ import annotations

from dataclasses import dataclass

import torch

from sola_profile.kernel_case import (
    BOTH,
    CHANNEL_MIX,
    HIDDEN_RATIO,
    LAYER_NORM,
    MIXES,
    PLAIN_RETENTION,
    SHIFT_MIX,
    WKV,
    KernelCase,
)
from sola_vision.ops.channel_mix import backward_macs, products
from sola_vision.ops.linear_attention import chunked_backward_macs, chunked_macs
from sola_vision.ops.linear_attention import macs as linear_macs
from sola_vision.ops.softmax_attention import macs as softmax_macs


@dataclass(frozen=True)
class Work:
    """Of one call of the compiled operator, as executed.

    ``macs``: multiply-accumulates in matrix products, 2 FLOPs each. ``exponentials``: those that its form can't do
    without: one per pair of softmax attention, one per element of q and k for ELU + 1, one per element of k for WKV,
    one per gate of a channel mix; a backward computes them again, and WKV's needs as many once more for the scan over
    queries. ``moved_bytes``:
    inputs read and outputs written once, and once more with the gradients for a backward.
    """

    macs: int
    exponentials: int
    moved_bytes: int

    @property
    def flops(self) -> int:
        """2 per multiply-accumulate."""
        return 2 * self.macs


def work(case: KernelCase) -> Work:
    """The work of a case: ``docs/math.md`` derives the products, ``docs/profiling.md`` the rest."""
    both = case.mode == BOTH
    shape = case.shape
    elements = shape.batch * shape.heads * shape.tokens * shape.dim
    # tensors of tokens; what parameters take is left out, but for whole matrices
    inputs = {WKV: 2, SHIFT_MIX: 1, LAYER_NORM: 1, CHANNEL_MIX: 2}.get(case.op, 3)
    outputs = MIXES if case.op == SHIFT_MIX else 1
    # backward: the inputs and the gradients of the outputs in, the gradients of the inputs out
    tensors = inputs + outputs + (2 * inputs + outputs if both else 0)
    itemsize = int(getattr(torch, case.dtype).itemsize)
    moved_bytes = tensors * elements * itemsize
    if case.op == CHANNEL_MIX:
        return _channel_mix(case, moved_bytes, itemsize)
    if case.op in (SHIFT_MIX, LAYER_NORM):
        return Work(0, 0, moved_bytes)
    if case.op == WKV:
        return Work(0, (3 if both else 1) * elements, moved_bytes)
    times = 2 if both else 1
    if case.op == "softmax_attention":
        pairs = shape.batch * shape.heads * shape.tokens**2
        return Work(_softmax(case, both=both), times * pairs, moved_bytes)
    macs = _global(case, both=both) if case.op == "linear_attention" else _chunked(case, both=both)
    return Work(macs, 0 if case.op == PLAIN_RETENTION else times * 2 * elements, moved_bytes)


def _channel_mix(case: KernelCase, moved_bytes: int, itemsize: int) -> Work:
    shape, both = case.shape, case.mode == BOTH
    tokens, hidden = shape.batch * shape.tokens, HIDDEN_RATIO * shape.dim
    macs = sum(products(tokens, shape.dim, hidden).values())
    if both:
        macs += backward_macs(tokens, shape.dim, hidden)
    # read, and for a backward read again and a gradient of each written
    weights = (3 if both else 1) * shape.dim * (2 * hidden + shape.dim)
    return Work(macs, (2 if both else 1) * tokens * shape.dim, moved_bytes + weights * itemsize)


def _softmax(case: KernelCase, *, both: bool) -> int:
    shape = case.shape
    forward = int(softmax_macs(shape.batch, shape.tokens, shape.tokens, shape.heads, shape.dim, shape.dim))
    # five products of the same size where the forward has two
    return forward + forward // 2 * 5 if both else forward


def _global(case: KernelCase, *, both: bool) -> int:
    shape = case.shape
    forward = int(linear_macs(shape.batch, shape.tokens, shape.tokens, shape.heads, shape.dim, shape.dim))
    return 3 * forward if both else forward


def _chunked(case: KernelCase, *, both: bool) -> int:
    shape, causal = case.shape, case.op != "decay_attention"
    sizes = (shape.batch, shape.tokens, shape.heads, shape.dim, shape.dim)
    forward = int(chunked_macs(*sizes, causal=causal))
    return forward + int(chunked_backward_macs(*sizes, causal=causal)) if both else forward


def equal_products_tokens(dim: int, mode: str) -> float:
    """The N at which softmax and linear attention have as many multiply-accumulates: D forward, 6/7·D with backward.

    ``2·N²·D`` against ``2·N·D²``, and ``7·N²·D`` against ``6·N·D²``.
    """
    return dim * (6 / 7 if mode == BOTH else 1.0)
