"""What a token mixer is, and what the attention-like ones share."""

# B batch, N tokens, C channels, H heads, D head dim

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sola_vision.layers import Grid
from sola_vision.terms import Terms, linear, total

# the head dims that the compiled operators take
MAX_HEAD_DIM = 256


class Mixer(nn.Module):
    """Moves information between tokens, ``(B, N, C)`` → ``(B, N, C)``.

    The constructor takes ``dim`` and ``heads``; its keyword-only parameters are the mixer's options. One that is
    named ``shift`` follows ``BackboneSpec.shift`` unless it is given.
    """

    # "linear" in the number of tokens, with a state that a bridge can take, or "softmax": quadratic, without a state
    kind: ClassVar[Literal["linear", "softmax"]] = "linear"
    # terms(dim, heads, tokens, **options): the closed-form cost of forward on one image, for an int or a sympy
    # expression of tokens; a class method whose keyword-only parameters are the constructor's
    terms: ClassVar[Callable[..., Terms]]

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim < 1 or heads < 1 or dim % heads:
            raise ValueError(f"heads: expected a divisor of dim={dim}, got {heads}")
        self.dim = dim
        self.heads = heads
        self.head_dim = dim // heads

    def init_weights(self, depth: float) -> None:
        """Set the parameters that aren't a ``Linear``, ``Conv2d`` or ``LayerNorm`` (the backbone sets those).

        ``depth``: this layer's place in the backbone, from 0 for the first to 1 for the last.
        """

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
        """The mixed tokens, and the state per token ``(B, N, C)`` that a bridge may carry on (None for softmax)."""
        raise NotImplementedError


class AttentionMixer(Mixer):
    """A mixer with one bias-free projection to queries, keys and values and one from the result: 4·C² parameters."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        if self.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head_dim: expected at most {MAX_HEAD_DIM}, got {self.head_dim}")
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, N, C)`` → three views ``(B, N, H, D)`` of one tensor, so that nothing is copied."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim).unbind(2)
        return q, k, v

    @staticmethod
    def projection_terms(dim: int, tokens: Any) -> Terms:
        """The two projections."""
        return total(linear("qkv", tokens, dim, 3 * dim), linear("output", tokens, dim, dim))
