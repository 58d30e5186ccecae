"""Fused attention on the meta device as the CPU runs it.

PyTorch chooses the kernel of ``F.scaled_dot_product_attention`` by device, and for meta it is the one that builds all
N × N scores. On the CPU it is a fused kernel that keeps one number per query (torch 2.13, ``use_flash_attention_cpp`` in
aten/src/ATen/native/transformers/sdp_utils_cpp.cpp), so memory that is predicted on meta must be that of the latter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def cpu_attention() -> Iterator[None]:
    """Attention on meta takes the route that it would take on the CPU.

    The function itself is replaced for a while: a mode that overrides functions is not active where a checkpoint runs
    its block again.
    """
    original = functional.scaled_dot_product_attention

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        return _fused(*args, **kwargs) if _is_fused(*args, **kwargs) else original(*args, **kwargs)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _is_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *_: Any,
    enable_gqa: bool = False,
    **__: Any,
) -> bool:
    """The rule of PyTorch, as far as models meet it."""
    operands = (query, key, value)
    learnt_mask = attn_mask is not None and attn_mask.requires_grad
    plain = all(tensor.is_meta and tensor.dim() == 4 and tensor.stride(-1) == 1 for tensor in operands)
    alike = all(query.size(dim) == key.size(dim) == value.size(dim) for dim in (0, -1))
    heads, shared = query.size(1), key.size(1)
    # since torch 2.14 one head of keys is broadcast without being asked for
    broadcast = shared == 1 and torch.__version__ >= "2.14"
    divided = heads == shared or broadcast or (enable_gqa and shared > 0 and heads % shared == 0)
    fits = alike and divided and shared == value.size(1)
    return plain and fits and dropout_p == 0 and not learnt_mask and query.numel() > 0


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # the kernel takes what is added to the scores
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out: Tensor = kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out
