"""Q-Shift and its mixes in one pass: every token joined with its four neighbours, O(N)."""

# B batch, H rows, W columns, C channels, K mixes

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sola_vision.ops._batched import examples_as_batch, examples_in_turn
from sola_vision.ops._checks import check_parameter, check_tensor, require, require_tensors
from sola_vision.ops._transforms import lowered, under_transforms

OP = "shift_mix"
MOST_MIXES = 8


def shift_mix(x: Tensor, ratios: Tensor) -> tuple[Tensor, ...]:
    """Mix every token with its shifted neighbours, once for every row of ``ratios``.

    ``out_k = m_k ⊙ x + (1 − m_k) ⊙ shift(x)`` with ``m = ratios``. ``shift`` takes the channels of group g,
    ``g·⌊C/4⌋`` to ``(g+1)·⌊C/4⌋``, from the token at the left (g = 0), at the right (1), above (2) and below (3), zero
    beyond the edge; channels left over when C is no multiple of 4 stay. One pass reads ``x`` once and writes all mixes;
    the backward keeps ``x`` and ``ratios`` alone.

    Args:
        x: ``(B, H, W, C)``, tokens on a grid of H rows and W columns, float64 (CPU), float32, bfloat16 or float16; any
            strides, last dimension contiguous.
        ratios: ``(K, C)`` with K from 1 to 8, in float32 (float64 with float64); the share of the token itself.

    Returns:
        K tensors ``(B, H, W, C)`` in the dtype of ``x``; sums run in float32 (float64 for float64).

    Raises:
        TypeError: names the argument that is no tensor.
        ValueError: names the argument, what came and what is allowed.

    Source: Vision-RWKV, arXiv 2403.02308, section 3.2 (Q-Shift).

    """
    require_tensors(OP, x=x, ratios=ratios)
    return tuple(_shift_mix(x, ratios))


def scalar_ops(elements: Any, mixes: Any) -> dict[str, Any]:
    """Scalar operations: a difference, a product and a sum per element and mix; the shift itself only moves data."""
    return {"elementwise": 3 * mixes * elements}


def _check(x: Tensor, ratios: Tensor) -> None:
    check_tensor(OP, "x", x, "(B, H, W, C)")
    shape = tuple(ratios.shape)
    fits = len(shape) == 2 and shape[1] == x.size(3) and 1 <= shape[0] <= MOST_MIXES
    require(fits, OP, "ratios", f"be (K, C) with K = 1 to {MOST_MIXES} and C = {x.size(3)}", shape)
    check_parameter(OP, "ratios", ratios, x)


@torch.library.register_fake("sola::shift_mix")
def _(x: Tensor, ratios: Tensor) -> list[Tensor]:
    _check(x, ratios)
    return [x.new_empty(x.shape) for _ in range(ratios.size(0))]


@torch.library.register_fake("sola::shift_mix_backward")
def _(grads: list[Tensor], x: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), ratios.new_empty(ratios.shape)


@register_flop_formula([torch.ops.sola.shift_mix, torch.ops.sola.shift_mix_backward])
def _flops(*args: Any, **kwargs: Any) -> int:
    # no matrix product
    return 0


examples_as_batch("shift_mix", tokens=1, batch_dims=(0,))
examples_in_turn("shift_mix_backward")
_shift_mix = under_transforms("shift_mix", lowered(1))
