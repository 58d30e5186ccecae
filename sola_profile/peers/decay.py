"""Linear attention with decay: multiplied out over all pairs, and in chunks of batched matrix products."""

# B batch, N tokens, H heads, D head dim, V value head dim, C chunk, n chunks

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sola_vision.ops.reference import feature

SHORTEST_CHUNK = 32


def masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    *,
    causal: bool = False,
    feature_map: str = "elu1",
    normalize: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """``(φ(q) φ(k)ᵀ ∘ γ^|i−j|) v`` over its row sums: RetNet's parallel form, two buffers of N × N numbers."""
    queries, keys, values = (x.transpose(1, 2) for x in (feature(q, feature_map), feature(k, feature_map), v))
    place = torch.arange(q.size(1), device=q.device)
    weights = (queries @ keys.transpose(-2, -1)) * _powers(decay, place[:, None] - place, causal=causal).to(q.dtype)
    out = weights @ values
    if normalize:
        out = out / (weights.sum(-1, keepdim=True) + eps)
    return out.transpose(1, 2).contiguous()


def _powers(decay: Tensor, distance: Tensor, *, causal: bool) -> Tensor:
    """``γ^|distance|`` per head, ``(H, *distance)``; 0 where the distance is negative when ``causal``."""
    powers = torch.exp(decay.log().view(-1, *[1] * distance.dim()) * distance.abs())
    return torch.where(distance < 0, 0, powers) if causal else powers


def chunk_length(tokens: int, dim: int) -> int:
    """Tokens of a chunk: as many as a state has rows, or a divisor of N near that, so that nothing is padded."""
    most = max(64, dim)
    if tokens <= most:
        return max(tokens, 1)
    return next((size for size in range(most, SHORTEST_CHUNK - 1, -1) if tokens % size == 0), most)


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    *,
    causal: bool = False,
    feature_map: str = "elu1",
    normalize: bool = True,
    eps: float = 1e-6,
    length: int | None = None,
) -> Tensor:
    """The same in O(N·C): pairs within chunks multiplied out, chunks joined by a small matrix over their states.

    RetNet's chunkwise form (arXiv 2307.08621) without its loop: the state that enters chunk c is
    ``Σ_{b<c} γ^(C(c−1−b)) U_b``, one product of an n × n matrix with all chunks' sums U. The other direction uses the
    transposed matrix; both directions share one read-out of depth 2D. ``length``: C, by ``chunk_length`` unless given.
    """
    tokens = q.size(1)
    length = length or chunk_length(tokens, q.size(3))
    q, k = feature(q, feature_map), feature(k, feature_map)
    q, k, v = (_cut(x, length) for x in (q, k, v))
    numerator, denominator = _within(q, k, v, decay, causal=causal)
    more_numerator, more_denominator = _Across.of(decay, length, q.size(2), causal=causal).read(q, k, v)
    out = numerator + more_numerator
    if normalize:
        out = out / (denominator + more_denominator + eps)
    return out.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens].contiguous()


def _cut(x: Tensor, length: int) -> Tensor:
    """``(B, N, H, D)`` → ``(B, H, n, C, D)``, the last chunk filled with zeros."""
    missing = -x.size(1) % length
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    return x.view(x.size(0), x.size(1) // length, length, *x.shape[2:]).permute(0, 3, 1, 2, 4)


def _within(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    place = torch.arange(q.size(3), device=q.device)
    powers = _powers(decay, place[:, None] - place, causal=causal).to(q.dtype)
    weights = (q @ k.transpose(-2, -1)) * powers[:, None]
    return weights @ v, weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class _Across:
    """How chunks see each other. ``read_powers``, ``feed_powers``: per direction ``(H, C)``, of queries and keys.

    ``between``: ``(H, n, n)``, what the sums of a chunk count for in the state that enters another from the left.
    """

    read_powers: tuple[Tensor, ...]
    feed_powers: tuple[Tensor, ...]
    between: Tensor

    @classmethod
    def of(cls, decay: Tensor, length: int, chunks: int, *, causal: bool) -> _Across:
        place = torch.arange(length, device=decay.device)
        number = torch.arange(chunks, device=decay.device)
        read = [_powers(decay, place + 1, causal=False)]
        feed = [_powers(decay, length - 1 - place, causal=False)]
        if not causal:
            read.append(read[0].flip(-1))
            feed.append(feed[0].flip(-1))
        apart = number[:, None] - number - 1
        # 0 for chunks that don't lie before: causal in the numbers of chunks
        between = torch.where(apart < 0, 0, _powers(decay, apart.clamp(min=0) * length, causal=False))
        return cls(tuple(read), tuple(feed), between)

    def read(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator that the other chunks add."""
        keys = self._weighted(k, self.feed_powers)
        queries = self._weighted(q, self.read_powers)
        states, key_sums = self._carry(keys.transpose(-2, -1) @ v), self._carry(keys.sum(-2).unsqueeze(-1))
        return queries @ states, queries @ key_sums

    @staticmethod
    def _weighted(x: Tensor, powers: tuple[Tensor, ...]) -> Tensor:
        weighted = [x * power.to(x.dtype)[:, None, :, None] for power in powers]
        return weighted[0] if len(weighted) == 1 else torch.cat(weighted, -1)

    def _carry(self, sums: Tensor) -> Tensor:
        """Sums per chunk ``(B, H, n, directions·D, V)`` → states that enter each chunk."""
        between = self.between.to(sums.dtype)
        if len(self.read_powers) == 1:
            return (between @ sums.flatten(3)).view_as(sums)
        half = sums.size(3) // 2
        parts = zip((between, between.transpose(-2, -1)), sums.split(half, 3), strict=True)
        return torch.cat([(matrix @ part.flatten(3)).view(part.shape) for matrix, part in parts], 3)
