"""The operators in plain PyTorch, written to be read as their definition.

Quadratic in N and in no hurry: tests compare the compiled operators with these, in float64, forward and gradients.
"""

# B batch, N queries, M keys, H heads, D head dim, V value head dim, C channels

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def feature(x: Tensor, feature_map: str) -> Tensor:
    """φ(x): ``elu1`` is ELU(x) + 1, ``relu``, ``identity``, ``exp``."""
    if feature_map == "elu1":
        return F.elu(x) + 1
    if feature_map == "relu":
        return F.relu(x)
    if feature_map == "exp":
        return x.exp()
    if feature_map == "identity":
        return x
    raise ValueError(f"feature_map: unknown name {feature_map!r}")


def _distance(queries: int, keys: int, device: torch.device) -> Tensor:
    """(N, M): i − j."""
    return torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)


def _safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is 0, in value and in gradient."""
    zero = denominator == 0
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, causal: bool = False) -> Tensor:
    """See ``sola_vision.ops.softmax_attention``."""
    scale = q.size(-1) ** -0.5 if scale is None else scale
    scores = scale * torch.einsum("bnhd,bmhd->bhnm", q, k)
    if causal:
        scores = scores.masked_fill(_distance(q.size(1), k.size(1), q.device) < 0, float("-inf"))
    return torch.einsum("bhnm,bmhv->bnhv", scores.softmax(-1), v)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "elu1",
    decay: Tensor | None = None,
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """See ``sola_vision.ops.linear_attention``."""
    weights = torch.einsum("bnhd,bmhd->bhnm", feature(q, feature_map), feature(k, feature_map))
    distance = _distance(q.size(1), k.size(1), q.device)
    if decay is not None:
        weights = weights * (decay[:, None, None] ** distance.abs()).to(weights.dtype)
    if causal:
        weights = weights.masked_fill(distance < 0, 0)
    out = torch.einsum("bhnm,bmhv->bnhv", weights, v)
    if normalize:
        out = _safe_divide(out, (weights.sum(-1) + eps).transpose(1, 2)[..., None])
    return out


def wkv(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, *, decay_per: str = "sequence") -> Tensor:
    """See ``sola_vision.ops.wkv``."""
    tokens = k.size(1)
    rate = decay / max(tokens, 1) if decay_per == "sequence" else decay
    distance = _distance(tokens, tokens, k.device).abs()[..., None]
    # (B, N, N, C): the log-weight of token i in the average at token t
    logits = torch.where(distance == 0, bonus, -(distance - 1) * rate) + k[:, None]
    return torch.einsum("btic,bic->btc", logits.softmax(2).to(v.dtype), v)


def shift_mix(x: Tensor, ratios: Tensor) -> tuple[Tensor, ...]:
    """See ``sola_vision.ops.shift_mix``."""
    group = x.size(3) // 4
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    rows, columns = slice(1, x.size(1) + 1), slice(1, x.size(2) + 1)
    neighbours = (padded[:, rows, :-2], padded[:, rows, 2:], padded[:, :-2, columns], padded[:, 2:, columns], x)
    bounds = [0, group, 2 * group, 3 * group, 4 * group, x.size(3)]
    shifted = torch.cat([part[..., bounds[g] : bounds[g + 1]] for g, part in enumerate(neighbours)], -1)
    return tuple((ratio * x + (1 - ratio) * shifted).to(x.dtype) for ratio in ratios)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """See ``sola_vision.ops.layer_norm``."""
    distance = x - x.mean(2, keepdim=True)
    return (distance / (distance.square().mean(2, keepdim=True) + eps).sqrt() * weight + bias).to(x.dtype)


def channel_mix(x_k: Tensor, x_r: Tensor, key: Tensor, value: Tensor, receptance: Tensor) -> Tensor:
    """See ``sola_vision.ops.channel_mix``."""
    hidden = torch.einsum("bnc,mc->bnm", x_k, key).relu() ** 2
    return torch.einsum("bnc,dc->bnd", x_r, receptance).sigmoid() * torch.einsum("bnm,cm->bnc", hidden, value)
