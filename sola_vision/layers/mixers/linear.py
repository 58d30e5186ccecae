"""Linear attention with ELU + 1, rotary positions and a local positional term, as in MILA."""

# B batch, N tokens, C channels, H heads, D head dim

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sola_vision import ops
from sola_vision.layers import Grid
from sola_vision.layers.mixers.base import AttentionMixer
from sola_vision.ops._checks import accumulate_dtype
from sola_vision.ops.linear_attention import macs
from sola_vision.terms import Terms, total


class LinearAttention(AttentionMixer):
    """``out_i = ρ(φ(q_i)) Σ_j ρ(φ(k_j))ᵀ v_j / φ(q_i)·Σ_j φ(k_j) + LePE(v)_i``, ``φ = ELU + 1``.

    ``rope``: ρ rotates half of a head's channel pairs by the token's row and half by its column, in the numerator
    only, so that the denominator stays positive; without it the fused operator does everything.
    ``lepe``: a depthwise 3 × 3 convolution of v is added. The state is the attention's result without LePE.
    Source: MILA, arXiv 2405.16605, where one set of frequencies spans all heads; here each head has the whole set.
    """

    def __init__(self, dim: int, heads: int, *, rope: bool = True, lepe: bool = True) -> None:
        super().__init__(dim, heads)
        if rope and self.head_dim % 4:
            raise ValueError(f"rope: needs a head dim that is a multiple of 4, got {self.head_dim}")
        self.rope = rope
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if lepe else None

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        q, k, v = self.project(x)
        attended = rotary_attention(q, k, v, grid) if self.rope else ops.linear_attention(q, k, v, feature_map="elu1")
        state = attended.flatten(2)
        mixed = state if self.lepe is None else state + self._local(self.lepe, v, grid)
        return self.output(mixed), state

    def _local(self, lepe: nn.Conv2d, v: Tensor, grid: Grid) -> Tensor:
        image = v.reshape(v.size(0), grid[0], grid[1], self.dim).permute(0, 3, 1, 2)
        local: Tensor = lepe(image)
        return local.flatten(2).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"rope={self.rope}"

    @classmethod
    def terms(cls, dim: int, heads: int, tokens: Any, *, rope: bool = True, lepe: bool = True) -> Terms:
        """Projections, the state and its read-out, the convolution.

        Scalar operations: φ of queries and keys (an exp, an addition and a choice each), the normaliser (sum of the
        keys, dot product with the queries, division), and with ``rope`` three per rotated element of q and k.
        """
        elements = tokens * dim
        attention = Terms(
            {"attention": macs(1, tokens, tokens, heads, dim // heads, dim // heads)},
            {"exp": 2 * elements, "activation": 4 * elements, "normaliser": 4 * elements},
        )
        rotation = Terms({}, {"rotation": 6 * elements} if rope else {})
        # nine products per element, the bias, and the sum with the attention
        local = Terms({"lepe": 9 * elements}, {"elementwise": 2 * elements}, 10 * dim) if lepe else Terms()
        return total(cls.projection_terms(dim, tokens), attention, rotation, local)


def rotary_attention(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """Linear attention whose numerator alone is rotated; all ``(B, N, H, D)``.

    Numerator and denominator are scaled by 1/N. The queries are divided before the product and the scale is shared
    out over both factors, so that nothing overflows in half precision at any N.
    """
    q, k = F.elu(q) + 1, F.elu(k) + 1
    normaliser = (q * k.mean(1, keepdim=True)).sum(-1, keepdim=True) + 1e-6
    cosine, sine = rotation_tables(q, grid, scale=q.size(1) ** -0.5)
    rotated_q = rotate(q / normaliser, cosine, sine)
    return ops.linear_attention(rotated_q, rotate(k, cosine, sine), v, feature_map="identity", normalize=False)


def rotation_tables(x: Tensor, grid: Grid, scale: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every token's angles, times ``scale``, ``(N, 1, D/2)``.

    Angles are ``row · f_i`` for the first D/4 pairs and ``column · f_i`` for the rest, ``f_i = 10000^(−i / (D/4))``.
    """
    rows, columns = grid
    count = x.size(-1) // 4
    # angles of far tokens need more digits than half precision has
    dtype = accumulate_dtype(x)
    # the base is RoFormer's, arXiv 2104.09864
    frequency = torch.exp(torch.arange(count, dtype=dtype, device=x.device) * (-math.log(10_000) / count))
    by_row = (torch.arange(rows, dtype=dtype, device=x.device)[:, None] * frequency)[:, None]
    by_column = (torch.arange(columns, dtype=dtype, device=x.device)[:, None] * frequency)[None]

    def spread(of_rows: Tensor, of_columns: Tensor) -> Tensor:
        halves = (of_rows.expand(rows, columns, count), of_columns.expand(rows, columns, count))
        return (torch.cat(halves, -1) * scale).to(x.dtype).view(rows * columns, 1, 2 * count)

    return spread(by_row.cos(), by_column.cos()), spread(by_row.sin(), by_column.sin())


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs ``(x_i, x_{i + D/2})`` of ``(B, N, H, D)``."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((torch.addcmul(a * cosine, b, sine, value=-1), torch.addcmul(b * cosine, a, sine)), dim=-1)
