"""The first witness: cost from the spec alone, as numbers at one size and as polynomials in the number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import sympy

from sola_profile.case import Resolution
from sola_profile.cost.polynomial import Polynomial
from sola_profile.pieces import KINDS, piece_modules
from sola_vision.backbone_terms import spec_terms, spec_terms_tokens
from sola_vision.spec import BackboneSpec

# the name under which a softmax layer files its two N × N products
_ATTENTION = "attention"


@dataclass(frozen=True)
class PieceCost:
    """One piece at one size: matrix products in multiply-accumulates, scalar operations by kind, parameters."""

    name: str
    kind: str
    macs: int
    scalar_ops: Mapping[str, int]
    parameters: int


@dataclass(frozen=True)
class ClosedForm:
    """A batch at one size, piece by piece, forward."""

    pieces: tuple[PieceCost, ...]

    @property
    def macs(self) -> int:
        """All matrix products; FLOPs are twice that."""
        return sum(piece.macs for piece in self.pieces)

    @property
    def parameters(self) -> int:
        """All learnable numbers."""
        return sum(piece.parameters for piece in self.pieces)

    @property
    def macs_by_kind(self) -> dict[str, int]:
        """Matrix products per kind of layer, in the order of ``KINDS``."""
        return {kind: sum(piece.macs for piece in self.pieces if piece.kind == kind) for kind in KINDS}

    @property
    def scalar_ops(self) -> dict[str, int]:
        """Scalar operations by name, most frequent first."""
        names = {name for piece in self.pieces for name in piece.scalar_ops}
        sums = {name: sum(piece.scalar_ops.get(name, 0) for piece in self.pieces) for name in names}
        return dict(sorted(sums.items(), key=lambda entry: (-entry[1], entry[0])))


def closed_form(spec: BackboneSpec, resolution: Resolution, batch: int = 1) -> ClosedForm:
    """Cost of a batch of images, forward; exact at any size, padding included."""
    names = [piece.name for piece in piece_modules(spec)]
    pieces = spec_terms(spec, resolution.height, resolution.width)
    return ClosedForm(
        tuple(
            PieceCost(
                name,
                piece.kind,
                batch * piece.terms.total_macs,
                {key: batch * value for key, value in piece.terms.scalar_ops.items()},
                piece.terms.params,
            )
            for name, piece in zip(names, pieces, strict=True)
        )
    )


@dataclass(frozen=True)
class Complexity:
    """Multiply-accumulates of one image as polynomials in N, the tokens of stage 1.

    N = (H/p)·(W/p) with patch size p; stage s has N/4^(s−1) tokens. Exact where both sides divide by the whole
    stride (32 for patch 4); at other sizes padding adds tokens to the later stages. ``attention``: the N × N products
    of the softmax layers, the only quadratic part.
    """

    total: Polynomial
    by_kind: Mapping[str, Polynomial]
    attention: Polynomial

    @property
    def attention_overtakes(self) -> float | None:
        """N from which the N × N products cost more than everything else."""
        return (self.attention - (self.total - self.attention)).overtakes_at

    @property
    def softmax_overtakes(self) -> float | None:
        """N from which the softmax layers, with their projections, cost more than everything else."""
        softmax = self.by_kind["softmax"]
        return (softmax - (self.total - softmax)).overtakes_at


def complexity(spec: BackboneSpec) -> Complexity:
    """The polynomials of a backbone."""
    tokens = sympy.Symbol("N", positive=True)
    pieces = spec_terms_tokens(spec, [tokens / 4**stage for stage in range(len(spec.dims))])
    zero = sympy.Integer(0)
    by_kind = {kind: sum((p.terms.total_macs for p in pieces if p.kind == kind), zero) for kind in KINDS}
    attention = sum((p.terms.macs[_ATTENTION] for p in pieces if p.kind == "softmax"), zero)
    return Complexity(
        polynomial(sum(by_kind.values(), zero), tokens),
        {kind: polynomial(expression, tokens) for kind, expression in by_kind.items()},
        polynomial(attention, tokens),
    )


def polynomial(expression: sympy.Expr, tokens: sympy.Symbol) -> Polynomial:
    """The coefficients of an expression of degree 2 at most; raises ``ValueError`` for anything else."""
    terms = sympy.Poly(sympy.expand(expression), tokens)
    if terms.degree() > 2:
        raise ValueError(f"expected at most N², got {expression}")
    coefficients = [terms.coeff_monomial(tokens**power) for power in (2, 1, 0)]
    return Polynomial(*(Fraction(int(value.p), int(value.q)) for value in coefficients))
