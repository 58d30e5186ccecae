"""The first witness: cost from the spec alone, as numbers at one size and as polynomials in the number of tokens."""

from __future__ import annotations

from fractions import Fraction

import sympy

from sola_profile.case import Resolution
from sola_profile.cost.breakdown import CLOSED_FORM, Breakdown, PieceCost
from sola_profile.cost.polynomial import SOFTMAX, Complexity, Polynomial
from sola_profile.pieces import KINDS, piece_modules
from sola_vision.backbone_terms import spec_terms, spec_terms_tokens
from sola_vision.spec import BackboneSpec

# the name under which a softmax layer files its two N × N products
_ATTENTION = "attention"


def closed_form(spec: BackboneSpec, resolution: Resolution, batch: int = 1) -> Breakdown:
    """Cost of a batch of images, forward; exact at any size, padding included."""
    names = [piece.name for piece in piece_modules(spec)]
    pieces = spec_terms(spec, resolution.height, resolution.width)
    costs = tuple(
        PieceCost(
            name,
            piece.kind,
            batch * piece.terms.total_macs,
            {key: batch * value for key, value in piece.terms.scalar_ops.items()},
            piece.terms.params,
        )
        for name, piece in zip(names, pieces, strict=True)
    )
    return Breakdown(costs, KINDS, CLOSED_FORM)


def complexity(spec: BackboneSpec) -> Complexity:
    """The polynomials of a backbone."""
    tokens = sympy.Symbol("N", positive=True)
    pieces = spec_terms_tokens(spec, [tokens / 4**stage for stage in range(len(spec.dims))])
    zero = sympy.Integer(0)
    by_kind = {kind: sum((p.terms.total_macs for p in pieces if p.kind == kind), zero) for kind in KINDS}
    attention = sum((p.terms.macs[_ATTENTION] for p in pieces if p.kind == SOFTMAX), zero)
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
