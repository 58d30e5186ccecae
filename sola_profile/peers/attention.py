"""Softmax attention and linear attention with one global state."""

# B batch, N queries, M keys, H heads, D head dim, V value head dim

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sola_vision.ops.reference import feature


def fused_softmax(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, causal: bool = False) -> Tensor:
    """``F.scaled_dot_product_attention``: PyTorch's own fused kernel, on transposed views."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(1, 2).contiguous()


def eager_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q kᵀ / √D) v`` as three operators; two buffers of ``B·H·N·M`` numbers."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scale = float(q.size(-1)) ** -0.5
    scores = (q * scale) @ k.transpose(-2, -1)
    return (torch.softmax(scores, -1) @ v).transpose(1, 2).contiguous()


def eager_linear(
    q: Tensor, k: Tensor, v: Tensor, *, feature_map: str = "elu1", normalize: bool = True, eps: float = 1e-6
) -> Tensor:
    """``φ(q) (φ(k)ᵀ v) / (φ(q)·Σ φ(k) + eps)``: two batched matrix products, no N × M buffer."""
    q, k = feature(q, feature_map), feature(k, feature_map)
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    out = (queries @ (keys.transpose(-2, -1) @ values)).transpose(1, 2)
    if not normalize:
        return out.contiguous()
    return (out / ((q * k.sum(1, keepdim=True)).sum(-1, keepdim=True) + eps)).contiguous()
