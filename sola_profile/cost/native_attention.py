"""``nn.MultiheadAttention`` in evaluation as the CPU runs it.

There PyTorch leaves the fused kernel aside: its fast path, which layers of ``nn.TransformerEncoder`` take too, builds all
N × N weights of every head (torch 2.13, ``native_multi_head_attention_cpu`` in
aten/src/ATen/native/transformers/attention.cpp). Tensors without data never take it, so it is written out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def native_attention(device_type: str) -> Iterator[None]:
    """Multi-head attention without data does what the fast path of a kind of device does, where a real run takes it.

    On other devices than the CPU that is as fused as the usual path, which is taken.
    """
    plain, fast = nn.MultiheadAttention.forward, torch.backends.mha.get_fastpath_enabled()

    def forward(module: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> Any:
        native = _is_native(module, *args, **kwargs)
        return _native(module, *args, **kwargs) if native else plain(module, *args, **kwargs)

    # what remains of the fast path in the layers around attention can't be run without data
    torch.backends.mha.set_fastpath_enabled(False)
    if fast and device_type == "cpu":
        nn.MultiheadAttention.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.MultiheadAttention.forward = plain  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(fast)


def _is_native(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    """The rule of PyTorch, as far as models meet it."""
    del need_weights
    masks = [mask for mask in (key_padding_mask, attn_mask) if mask is not None]
    usual = module.batch_first and module._qkv_same_embed_dim and module.in_proj_bias is not None
    extended = module.bias_k is not None or module.bias_v is not None or module.add_zero_attn
    return (
        (query is key is value and query.dim() == 3 and usual and not extended)
        and not (module.training or torch.is_grad_enabled() or torch.is_autocast_enabled())
        and module.num_heads % 2 == 0
        and not any(mask.is_floating_point() for mask in masks)
    )


def _native(
    module: nn.MultiheadAttention,
    x: Tensor,
    _key: Tensor,
    _value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """The kernel's steps with what each of them holds."""
    # B batch, T tokens, H heads, D head dim
    batch, tokens, width = x.shape
    heads, dim = module.num_heads, module.head_dim
    assert module.in_proj_bias is not None
    maps = F.linear(x, module.in_proj_weight).view(batch, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4)
    parts = x.new_empty((3, batch, heads, tokens, dim))
    torch.add(maps, module.in_proj_bias.view(3, 1, heads, 1, dim), out=parts)
    del maps
    q, k, v = parts.view(3, batch * heads, tokens, dim).unbind()
    weights = torch.bmm(q, k.transpose(1, 2))
    if key_padding_mask is None and attn_mask is None:
        torch.ops.aten._softmax.out(weights, -1, False, out=weights)
    else:
        weights = torch._softmax(weights, -1, False)
    # queries have done their part
    taken = torch.bmm(weights, v, out=q)
    if not need_weights:
        del weights
    rows = x.new_empty((batch, tokens, heads, dim))
    rows.copy_(taken.view(batch, heads, tokens, dim).transpose(1, 2))
    out = module.out_proj(rows.view(batch, tokens, width))
    del rows
    if not need_weights:
        return out, None
    weights = weights.view(batch, heads, tokens, tokens)
    return out, weights.mean(1) if average_attn_weights else weights
