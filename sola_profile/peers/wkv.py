"""Bidirectional WKV in plain PyTorch: four running sums, and a loop over tokens."""

# B batch, N tokens, C channels

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# half of the exponent range of float32: beyond it the running sums lose tokens
LARGEST_EXPONENT = 40.0


def _per_token(k: Tensor, decay: Tensor, decay_per: str) -> Tensor:
    return decay / max(k.size(1), 1) if decay_per == "sequence" else decay


def cumulative(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, *, decay_per: str = "sequence") -> Tensor:
    """Both sides as running sums of ``e^(k_i ± i·w)``: vectorised and O(N).

    Right as long as ``|w|·N/2`` and the spread of the keys stay below ``LARGEST_EXPONENT``, which the decay per
    sequence of Vision-RWKV does; the compiled operator has no such limit.
    """
    rate = _per_token(k, decay, decay_per)
    dtype = k.dtype
    k, v = k.to(rate.dtype), v.to(rate.dtype)
    # counted from the middle, so that exponents stay half as large
    place = torch.arange(k.size(1), device=k.device, dtype=rate.dtype)[:, None] - (k.size(1) - 1) / 2
    grow, fade = torch.exp(place * rate), torch.exp(-place * rate)
    weight = torch.exp(k - k.amax(1, keepdim=True))

    def sums(x: Tensor) -> Tensor:
        # of the tokens before and behind; a difference of sums would be as short and lose digits
        left = F.pad((x * grow)[:, :-1].cumsum(1), (0, 0, 1, 0))
        right = F.pad((x * fade)[:, 1:].flip(1).cumsum(1).flip(1), (0, 0, 0, 1))
        return torch.exp(rate) * (fade * left + grow * right) + torch.exp(bonus) * x

    return (sums(weight * v) / sums(weight)).to(dtype)


def token_loop(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, *, decay_per: str = "sequence") -> Tensor:
    """The recurrence token by token: O(N) arithmetic in 4·N small operators, from the left and from the right."""
    rate = _per_token(k, decay, decay_per)
    dtype = k.dtype
    k, v = k.to(rate.dtype), v.to(rate.dtype)
    weight = torch.exp(k - k.amax(1, keepdim=True))
    # numerator and denominator together, (2, B, C) for every token
    fresh = torch.stack((weight * v, weight))
    keep = torch.exp(-rate)
    left = torch.stack(_running(fresh.unbind(2), keep), 2)
    right = torch.stack(_running(fresh.unbind(2)[::-1], keep)[::-1], 2)
    numerator, denominator = (left + right + torch.exp(bonus) * fresh).unbind(0)
    return (numerator / denominator).to(dtype)


def _running(fresh: tuple[Tensor, ...], keep: Tensor) -> list[Tensor]:
    """For every token the decayed sum of those before it."""
    state = torch.zeros_like(fresh[0])
    states = []
    for token in fresh:
        states.append(state)
        state = torch.addcmul(token, keep, state)
    return states
