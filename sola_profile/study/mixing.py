"""The mixing matrices of a layer: what share every token has in every other, from the definition of the mixer.

A mixer's operator is ``out = A v`` for each of its matrices A ``(N, N)``: one per head, or one per channel for WKV. Rows of A are
written out here in float64 as the definition says, in blocks. Products with A are left to the compiled operators, in
O(N) memory; that both agree is checked for every layer of a study.
"""

# N tokens, H heads, D head dim, V value head dim, C channels, R rows, P vectors

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from sola_vision import ops
from sola_vision.layers import Grid
from sola_vision.layers.mixers.base import AttentionMixer, Mixer
from sola_vision.layers.mixers.decay import DecayAttention
from sola_vision.layers.mixers.linear import LinearAttention, rotate, rotation_tables
from sola_vision.layers.mixers.softmax import SoftmaxAttention
from sola_vision.layers.mixers.wkv import WKV
from sola_vision.ops.reference import feature

# added to the denominators of linear attention, as the operator and the rotary form do
EPS = 1e-6
# elements of one operand when vectors are sent through WKV: one copy per channel of each
MOST_ELEMENTS = 2**24
# rows of a matrix that are in memory at once when vectors are sent through it
BLOCK = 128
# value width that the compiled operators take
MOST_VECTORS = 256


class Mixing(ABC):
    """The matrices of one layer at one input."""

    unit: str

    @property
    @abstractmethod
    def count(self) -> int:
        """How many matrices there are."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """N."""

    @abstractmethod
    def rows(self, number: int, queries: Tensor) -> Tensor:
        """Rows of matrix ``number`` at the tokens ``queries`` ``(R,)``: ``(R, N)``."""

    @abstractmethod
    def values(self, number: int) -> Tensor:
        """What the matrix is applied to: ``(N, V)``."""

    def apply(self, x: Tensor) -> Tensor:
        """The mean of all matrices times ``x`` ``(N, P)``, without N × N memory; by rows unless there is a shorter way."""
        return torch.cat([self.mean_rows(block) @ x for block in torch.arange(self.tokens).split(BLOCK)])

    def mean_rows(self, queries: Tensor) -> Tensor:
        """Rows of the mean of all matrices: ``(R, N)``."""
        total = torch.zeros(len(queries), self.tokens, dtype=torch.float64)
        for number in range(self.count):
            total += self.rows(number, queries)
        return total / self.count

    def operator_share(self, operator: Tensor, number: int) -> Tensor:
        """The columns of the operator's result ``(N, C)`` that belong to a matrix: ``(N, V)``."""
        width = operator.size(-1) // self.count
        return operator[:, number * width : (number + 1) * width]

    def queries(self, number: int) -> Tensor | None:
        """``(N, D)``, or None where rows don't depend on a query."""
        del number
        return None

    def with_queries_times(self, factor: float) -> Mixing | None:
        """The same with longer queries, or None where there are none."""
        del factor
        return None

    def factors(self, number: int) -> tuple[Tensor, Tensor] | None:
        """``(N, D)`` and ``(N, D)`` with A = left · rightᵀ, where A has them."""
        del number
        return None

    def state(self, number: int) -> Tensor | None:
        """The key–value state ``(D, V)``, where there is one."""
        del number
        return None

    def sampled(self, most: int) -> list[int]:
        """At most so many matrices, evenly spread over what tells them apart."""
        return spread(self.count, most)


@dataclass(frozen=True)
class HeadMixing(Mixing):
    """One matrix per head; ``q``, ``k``, ``v``: ``(N, H, D)`` in float64."""

    q: Tensor
    k: Tensor
    v: Tensor
    unit = "head"

    @property
    def count(self) -> int:
        """H."""
        return self.q.size(1)

    @property
    def tokens(self) -> int:
        """N."""
        return self.q.size(0)

    def values(self, number: int) -> Tensor:
        """The head's values."""
        return self.v[:, number]

    def queries(self, number: int) -> Tensor:
        """The head's queries."""
        return self.q[:, number]

    def with_queries_times(self, factor: float) -> HeadMixing:
        """``q`` scaled."""
        return replace(self, q=factor * self.q)

    def _as_values(self, x: Tensor) -> Tensor:
        """``(N, P)`` for every head: ``(1, N, H, P)``."""
        return x[None, :, None].expand(1, -1, self.count, -1).contiguous()


@dataclass(frozen=True)
class SoftmaxMixing(HeadMixing):
    """``A_ij = exp(q_i·k_j/√D) / Σ_j exp(q_i·k_j/√D)``."""

    def rows(self, number: int, queries: Tensor) -> Tensor:
        """By the definition."""
        scores = self.q[queries, number] @ self.k[:, number].T
        return (scores / sqrt(self.q.size(-1))).softmax(-1)

    def apply(self, x: Tensor) -> Tensor:
        """Through the operator, whose values are the vectors."""
        return _by_parts(x, lambda part: ops.softmax_attention(self.q[None], self.k[None], self._as_values(part)))


@dataclass(frozen=True)
class LinearMixing(HeadMixing):
    """``A_ij = ρ(φ(q_i))·ρ(φ(k_j)) / (φ(q_i)·Σ_j φ(k_j) + N·eps)``; without ρ the last term is ``eps``.

    ``grid``: of the rotation ρ; None without one. Rows then need not be positive nor sum to 1.
    """

    grid: Grid | None = None

    @cached_property
    def _left_and_right(self) -> tuple[Tensor, Tensor]:
        """``(N, H, D)`` each."""
        left, right = feature(self.q, "elu1"), feature(self.k, "elu1")
        denominator = (left * right.sum(0)).sum(-1, keepdim=True)
        if self.grid is None:
            return left / (denominator + EPS), right
        tables = rotation_tables(self.q[None], self.grid, scale=1.0)
        rotated = (rotate(part[None], *tables)[0] for part in (left / (denominator + self.tokens * EPS), right))
        return next(rotated), next(rotated)

    def factors(self, number: int) -> tuple[Tensor, Tensor]:
        """Rank D at most."""
        left, right = self._left_and_right
        return left[:, number], right[:, number]

    def rows(self, number: int, queries: Tensor) -> Tensor:
        """By the definition."""
        left, right = self.factors(number)
        return left[queries] @ right.T

    def apply(self, x: Tensor) -> Tensor:
        """Through the factors."""
        left, right = self._left_and_right
        return torch.einsum("nhd,hdp->np", left, torch.einsum("nhd,np->hdp", right, x)) / self.count

    def state(self, number: int) -> Tensor:
        """``Σ_j ρ(φ(k_j))ᵀ v_j``."""
        return self.factors(number)[1].T @ self.v[:, number]


@dataclass(frozen=True)
class DecayMixing(HeadMixing):
    """``A_ij = λ^|i−j| φ(q_i)·φ(k_j) / (Σ_j λ^|i−j| φ(q_i)·φ(k_j) + eps)``; ``decay``: λ of each head ``(H,)``."""

    decay: Tensor

    def rows(self, number: int, queries: Tensor) -> Tensor:
        """By the definition."""
        weights = feature(self.q[queries, number], "elu1") @ feature(self.k[:, number], "elu1").T
        weights = weights * self.decay[number] ** distances(queries, self.tokens)
        return weights / (weights.sum(-1, keepdim=True) + EPS)

    def apply(self, x: Tensor) -> Tensor:
        """Through the operator."""
        q, k = self.q[None], self.k[None]
        return _by_parts(
            x, lambda part: ops.linear_attention(q, k, self._as_values(part), feature_map="elu1", decay=self.decay)
        )

    def state(self, number: int) -> Tensor:
        """``Σ_j λ^|i−j| φ(k_j)ᵀ v_j`` as the token in the middle sees it."""
        fade = self.decay[number] ** distances(torch.tensor([self.tokens // 2]), self.tokens)
        return (fade * feature(self.k[:, number], "elu1").T) @ self.v[:, number]


@dataclass(frozen=True)
class WKVMixing(Mixing):
    """Per channel ``A_ti = exp(−(|t−i|−1)·w + k_i) / Σ``, with ``exp(u + k_t)`` at ``i = t``.

    ``k``, ``v``: ``(N, C)``; ``rate``: w per token ``(C,)``; ``bonus``: u ``(C,)``. Rows depend on the place alone, not on what
    stands there.
    """

    k: Tensor
    v: Tensor
    rate: Tensor
    bonus: Tensor
    unit = "channel"

    @property
    def count(self) -> int:
        """C."""
        return self.k.size(1)

    @property
    def tokens(self) -> int:
        """N."""
        return self.k.size(0)

    def rows(self, number: int, queries: Tensor) -> Tensor:
        """By the definition."""
        distance = distances(queries, self.tokens)
        logits = torch.where(distance == 0, self.bonus[number], -(distance - 1) * self.rate[number])
        return (logits + self.k[:, number]).softmax(-1)

    def values(self, number: int) -> Tensor:
        """One column."""
        return self.v[:, number, None]

    def apply(self, x: Tensor) -> Tensor:
        """Through the operator, every vector once per channel."""
        at_once = max(1, MOST_ELEMENTS // self.k.numel())
        return torch.cat([self._applied(part) for part in x.split(at_once, 1)], 1)

    def _applied(self, x: Tensor) -> Tensor:
        v = x.T[..., None].expand(-1, -1, self.count).contiguous()
        k = self.k.expand(v.shape).contiguous()
        return ops.wkv(k, v, self.rate, self.bonus, decay_per="token").mean(-1).T

    def sampled(self, most: int) -> list[int]:
        """Spread over the channels in the order of their rates."""
        order = torch.argsort(self.rate, stable=True).tolist()
        return sorted(order[place] for place in spread(self.count, most))


def _by_parts(x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean over heads of an operator's result, for as many vectors at once as it takes."""
    return torch.cat([attend(part)[0].mean(1) for part in x.split(MOST_VECTORS, 1)], 1)


def distances(queries: Tensor, tokens: int) -> Tensor:
    """|i − j| in raster order, ``(R, N)``."""
    return (queries[:, None] - torch.arange(tokens)).abs().double()


def spread(count: int, most: int) -> list[int]:
    """At most so many of ``count`` places, evenly spread, with both ends."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count // 2]
    return [round(number * (count - 1) / (most - 1)) for number in range(most)]


def mixing_of(mixer: Mixer, x: Tensor, grid: Grid) -> Mixing | None:
    """The matrices of a mixer at its input ``x`` ``(N, C)`` in float64; None for a mixer that isn't in ``MIXINGS``."""
    known = next((MIXINGS[kind] for kind in type(mixer).__mro__ if kind in MIXINGS), None)
    with torch.no_grad():
        return None if known is None else known(mixer, x, grid)


def projected(mixer: AttentionMixer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the tokens ``(N, C)``: ``(N, H, D)`` each."""
    q, k, v = mixer.project(x[None])
    return q[0], k[0], v[0]


def _softmax(mixer: SoftmaxAttention, x: Tensor, _: Grid) -> SoftmaxMixing:
    return SoftmaxMixing(*projected(mixer, x))


def _linear(mixer: LinearAttention, x: Tensor, grid: Grid) -> LinearMixing:
    return LinearMixing(*projected(mixer, x), grid if mixer.rope else None)


def _decay(mixer: DecayAttention, x: Tensor, _: Grid) -> DecayMixing:
    return DecayMixing(*projected(mixer, x), torch.exp(-torch.exp(mixer.log_rate)))


def _wkv(mixer: WKV, x: Tensor, grid: Grid) -> WKVMixing:
    for_key, for_value, _ = mixer.mix(x[None], grid)
    rate = mixer.decay / (x.size(0) if mixer.decay_per == "sequence" else 1)
    return WKVMixing(mixer.key(for_key)[0], mixer.value(for_value)[0], rate.detach(), mixer.bonus.detach())


# class of a mixer → its matrices at an input (N, C) on a grid; a subclass has those of its parent
MIXINGS: dict[type[Mixer], Callable[[Any, Tensor, Grid], Mixing]] = {
    SoftmaxAttention: _softmax,
    LinearAttention: _linear,
    DecayAttention: _decay,
    WKV: _wkv,
}


def even_mixing(mixer: Mixer, grid: Grid) -> Mixing | None:
    """The matrices of a mixer where all contents are equal (keys and queries 0), whatever its maps; None if unknown.

    What is left are decays and positions. Head dims that change nothing are left out.
    """
    tokens = grid[0] * grid[1]
    if isinstance(mixer, WKV):
        rate = mixer.decay.detach().double() / (tokens if mixer.decay_per == "sequence" else 1)
        empty = torch.zeros(tokens, mixer.dim, dtype=torch.float64)
        return WKVMixing(empty, empty, rate, mixer.bonus.detach().double())
    if isinstance(mixer, SoftmaxAttention):
        # equal scores: the mean over all tokens, which takes no N² products
        return LinearMixing(*_empty(tokens, 1, 1))
    if isinstance(mixer, LinearAttention):
        # all heads are alike; a rotation needs its pairs of channels
        return LinearMixing(*_empty(tokens, 1, mixer.head_dim), grid if mixer.rope else None)
    if isinstance(mixer, DecayAttention):
        decay = torch.exp(-torch.exp(mixer.log_rate.detach().double()))
        return DecayMixing(*_empty(tokens, mixer.heads, 1), decay)
    return None


def _empty(tokens: int, heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    zeros = torch.zeros(tokens, heads, dim, dtype=torch.float64)
    return zeros, zeros, zeros
