"""Linear attention whose weights fade with distance, at a learned rate per head."""

# N tokens, C channels, H heads

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sola_vision import ops
from sola_vision.layers import Grid
from sola_vision.layers.mixers.base import AttentionMixer
from sola_vision.ops._checks import accumulate_dtype
from sola_vision.ops.linear_attention import chunked_macs
from sola_vision.terms import Terms, total


class DecayAttention(AttentionMixer):
    """``out_i = Σ_j λ_h^|i−j| φ(q_i)·φ(k_j) v_j / Σ_j λ_h^|i−j| φ(q_i)·φ(k_j)``, ``φ = ELU + 1``, in raster order.

    ``λ_h = exp(−exp(log_rate_h))`` stays in (0, 1); it starts at RetNet's ``1 − 2^(−5−h)``. The state is the
    attention's result. Source: RetNet, arXiv 2307.08621, made bidirectional and normalised.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.log_rate = nn.Parameter(torch.empty(heads))
        self.init_weights(0.0)

    def init_weights(self, depth: float) -> None:
        """RetNet's schedule, the same at every depth."""
        reach = torch.arange(self.heads, dtype=torch.float64) + 5
        with torch.no_grad():
            self.log_rate.copy_(torch.log(-torch.log1p(-(2.0**-reach))))

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        q, k, v = self.project(x)
        decay = torch.exp(-torch.exp(self.log_rate.to(accumulate_dtype(q))))
        state = ops.linear_attention(q, k, v, feature_map="elu1", decay=decay).flatten(2)
        return self.output(state), state

    @classmethod
    def terms(cls, dim: int, heads: int, tokens: Any) -> Terms:
        """Projections and the chunked products as executed.

        Scalar operations: φ of queries and keys (an exp, an addition and a choice each), one product with the decay
        per pair within a chunk and per element of q and k in each direction across chunks, and the normaliser (sum
        and dot product per element of q and k, one division per output).
        """
        elements = tokens * dim
        # products of a head of dim 1 without values: the pairs within chunks
        pairs = chunked_macs(1, tokens, heads, 1, 0)
        attention = Terms(
            {"attention": chunked_macs(1, tokens, heads, dim // heads, dim // heads)},
            {
                "exp": 2 * elements,
                "activation": 4 * elements,
                "decay": pairs + 4 * elements,
                "normaliser": 4 * elements,
            },
            heads,
        )
        return total(cls.projection_terms(dim, tokens), attention)
