"""Bidirectional WKV of Vision-RWKV: exponentially decaying averages over tokens, per channel, O(N)."""

# B batch, N tokens, C channels

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sola_vision.ops._batched import examples_as_batch, examples_in_turn
from sola_vision.ops._checks import check_like, check_tensor, check_vector, require, require_tensors
from sola_vision.ops._transforms import lowered, under_transforms

OP = "wkv"
DECAY_PER = ("sequence", "token")


def wkv(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, *, decay_per: str = "sequence") -> Tensor:
    """Bidirectional WKV.

    ``out_t = [Σ_{i≠t} e^{−(|t−i|−1)·w + k_i} v_i + e^{u + k_t} v_t] / [the same without v]``, per channel, with
    ``u = bonus`` and ``w = decay / N`` (``decay_per="sequence"``, as Vision-RWKV: reach is a share of the sequence)
    or ``w = decay`` (``"token"``, the fixed decay of the SoLA-Vision analysis: reach is a number of tokens).

    Args:
        k: ``(B, N, C)``, float64 (CPU), float32, bfloat16 or float16; any strides, last dimension contiguous.
        v: ``(B, N, C)``.
        decay: ``(C,)`` in float32 (float64 with float64); larger forgets faster, negative favours far tokens.
        bonus: ``(C,)`` in the same dtype; extra weight of the token itself.
        decay_per: what ``decay`` is measured per: the whole ``"sequence"`` (default) or a ``"token"``.

    Returns:
        ``(B, N, C)`` in the dtype of ``k``; sums run in float32 (float64 for float64) under a running maximum.

    Raises:
        TypeError: names the argument that is no tensor.
        ValueError: names the argument, what came and what is allowed.

    Source: Vision-RWKV, arXiv 2403.02308, eqs. 2–3 (its code also divides the bonus by N; here the bonus is taken
    as given). Derivation of the scan and its gradient: ``docs/math.md``.

    """
    require_tensors(OP, k=k, v=v, decay=decay, bonus=bonus)
    require(decay_per in DECAY_PER, OP, "decay_per", f"be one of {', '.join(DECAY_PER)}", decay_per)
    rate = decay / max(k.size(1), 1) if decay_per == "sequence" and k.dim() == 3 else decay
    out: Tensor = _wkv(k, v, rate, bonus)[0]
    return out


def scalar_ops(batch: Any, tokens: Any, channels: Any) -> dict[str, Any]:
    """Scalar operations of the scan by kind; WKV has no matrix product.

    Two directions of decay, scale and add over numerator and denominator, and the read-out, as Vision-RWKV counts
    its 29 operations per token and channel (OpenGVLab/Vision-RWKV, ``classification/get_flops_backbone.py``).
    """
    return {"wkv": 29 * batch * tokens * channels}


def _check(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> None:
    check_tensor(OP, "k", k, "(B, N, C)")
    check_tensor(OP, "v", v, "(B, N, C)")
    check_like(OP, "v", v, "k", k)
    require(v.shape == k.shape, OP, "v", f"have the shape of k, {tuple(k.shape)}", tuple(v.shape))
    for name, tensor in (("decay", decay), ("bonus", bonus)):
        check_vector(OP, name, tensor, "C", k.size(2), k)


@torch.library.register_fake("sola::wkv")
def _(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, save: bool = False) -> tuple[Tensor, Tensor]:
    _check(k, v, decay, bonus)
    planes = (2 if k.element_size() == 2 else 1) if save else 0
    return k.new_empty(k.shape), decay.new_empty((planes, *k.shape))


@torch.library.register_fake("sola::wkv_backward")
def _(
    grad_out: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, out: Tensor, saved: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return k.new_empty(k.shape), v.new_empty(v.shape), decay.new_empty(decay.shape), bonus.new_empty(bonus.shape)


@register_flop_formula([torch.ops.sola.wkv, torch.ops.sola.wkv_backward])
def _flops(*args: Any, **kwargs: Any) -> int:
    # no matrix product; the scan is counted as scalar operations
    return 0


examples_as_batch("wkv", tokens=2, batch_dims=(0, 1))
examples_in_turn("wkv_backward")
_wkv = under_transforms("wkv", lowered(2), save=True)
