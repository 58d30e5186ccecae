"""Softmax attention by online softmax over key chunks: O(N·M) time, O(N + M) memory."""

# B batch, N queries, M keys, H heads, D head dim, V value head dim

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sola_vision.ops._batched import examples_as_batch
from sola_vision.ops._checks import accumulate_dtype, check_attention, number, require_tensors
from sola_vision.ops._transforms import lowered, under_transforms

OP = "softmax_attention"


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, causal: bool = False) -> Tensor:
    """Exact softmax attention.

    ``out_i = Σ_j p_ij v_j``, ``p_ij = exp(scale · q_i·k_j − lse_i)``, ``lse_i = log Σ_j exp(scale · q_i·k_j)``;
    ``j ≤ i`` when ``causal``. A query with no key to look at gives 0.

    On CUDA the forward pass may run on one of PyTorch's fused kernels: an ordered list decides, or ``softmax_backend``.
    The backward pass is always ours, from ``out`` and ``lse``: those of PyTorch by default add gradients of queries up
    in the order in which blocks arrive, so that two runs differ.

    Args:
        q: ``(B, N, H, D)``, float64 (CPU), float32, bfloat16 or float16; any strides, last dimension contiguous.
        k: ``(B, M, H, D)``.
        v: ``(B, M, H, V)``; D and V are 1 to 256, N and M are free.
        scale: factor on the scores, ``1/√D`` if None; a learned one is multiplied into ``q`` instead.
        causal: query i sees keys 0…i only.

    Returns:
        ``(B, N, H, V)`` in the dtype of ``q``; scores and sums are kept in float32 (float64 for float64).

    Raises:
        TypeError: names the argument that is no tensor, or no number.
        ValueError: names the argument, what came and what is allowed; or why a backend that was asked for can't run.

    Source: online softmax, Milakov and Gimelshein, arXiv 1805.02867; tiling and backward as in FlashAttention-2,
    arXiv 2307.08691. Derivation: ``docs/math.md``.

    """
    require_tensors(OP, q=q, k=k, v=v)
    if scale is None:
        scale = q.size(-1) ** -0.5 if q.size(-1) else 1.0
    else:
        scale = number(OP, "scale", scale, "multiply q by it and give scale=1.0")
    out: Tensor = _softmax_attention(q, k, v, scale, causal)[0]
    return out


def macs(batch: Any, queries: Any, keys: Any, heads: Any, dim: Any, value_dim: Any, *, causal: bool = False) -> Any:
    """Multiply-accumulates of the two products, ``B·H·pairs·(D + V)``.

    ``pairs`` is N·M, or with ``causal`` the pairs inside the mask; tiles that straddle the diagonal run some more.
    """
    return batch * heads * _pairs(queries, keys, causal) * (dim + value_dim)


def _pairs(queries: Any, keys: Any, causal: bool) -> Any:
    if not causal:
        return queries * keys
    square = min(queries, keys)
    return square * (square + 1) // 2 + (queries - square) * keys


@torch.library.register_fake("sola::softmax_attention")
def _(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    check_attention(OP, q, k, v)
    batch, queries, heads, _dim = q.shape
    accumulate = accumulate_dtype(q)
    return q.new_empty((batch, queries, heads, v.size(3))), q.new_empty((batch, heads, queries), dtype=accumulate)


@torch.library.register_fake("sola::softmax_attention_backward")
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@register_flop_formula(torch.ops.sola.softmax_attention)
def _flops(q: Any, k: Any, v: Any, scale: float, causal: bool, *args: Any, **kwargs: Any) -> Any:
    return 2 * macs(q[0], q[1], k[1], q[2], q[3], v[3], causal=causal)


@register_flop_formula(torch.ops.sola.softmax_attention_backward)
def _backward_flops(
    grad_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, scale: float, causal: bool, *args: Any, **kwargs: Any
) -> Any:
    # five products: scores again, dP, dV, dQ, dK; three of them over D and two over V
    pairs = _pairs(q[1], k[1], causal)
    return 2 * q[0] * q[2] * pairs * (3 * q[3] + 2 * v[3])


examples_as_batch("softmax_attention", tokens=3, batch_dims=(0, 0))
examples_as_batch("softmax_attention_backward", tokens=6, batch_dims=(0, 0, 0))
_softmax_attention = under_transforms("softmax_attention", lowered(3))
