"""Global multi-head softmax attention."""

# N tokens, C channels, H heads

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from sola_vision import ops
from sola_vision.layers import Grid
from sola_vision.layers.mixers.base import AttentionMixer
from sola_vision.ops.softmax_attention import macs
from sola_vision.terms import Terms, total


class SoftmaxAttention(AttentionMixer):
    """``softmax(q kᵀ / √D) v`` over all tokens, per head; the paper's S layer. Source: arXiv 1706.03762."""

    kind: ClassVar[Literal["linear", "softmax"]] = "softmax"

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, None]:
        q, k, v = self.project(x)
        return self.output(ops.softmax_attention(q, k, v).flatten(2)), None

    @classmethod
    def terms(cls, dim: int, heads: int, tokens: Any) -> Terms:
        """Projections and two N × N products.

        Per pair and head one exp and four more operations (scale, maximum, subtract, sum); one division per output.
        """
        pairs = heads * tokens * tokens
        attention = Terms(
            {"attention": macs(1, tokens, tokens, heads, dim // heads, dim // heads)},
            {"exp": pairs, "softmax": 4 * pairs + tokens * dim},
        )
        return total(cls.projection_terms(dim, tokens), attention)
