"""Cost as exact polynomials ``a·N² + b·N + c`` in the number of tokens, and where one part overtakes another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt

# the kind of a backbone's softmax layers
SOFTMAX = "softmax"


@dataclass(frozen=True)
class Polynomial:
    """``a·N² + b·N + c`` with exact coefficients."""

    a: Fraction
    b: Fraction
    c: Fraction

    def __add__(self, other: Polynomial) -> Polynomial:
        return Polynomial(self.a + other.a, self.b + other.b, self.c + other.c)

    def __sub__(self, other: Polynomial) -> Polynomial:
        return Polynomial(self.a - other.a, self.b - other.b, self.c - other.c)

    def __call__(self, tokens: int) -> Fraction:
        return (self.a * tokens + self.b) * tokens + self.c

    @property
    def overtakes_at(self) -> float | None:
        """The largest N > 0 where the value turns from negative to positive for good; None if it never does."""
        return last_rise(float(self.a), float(self.b), float(self.c))


@dataclass(frozen=True)
class Complexity:
    """Multiply-accumulates of one image as polynomials in N.

    Of a backbone, N = (H/p)·(W/p) with patch size p are the tokens of stage 1, stage s has N/4^(s−1), and the kinds are
    those of its layers; exact where both sides divide by the whole stride (32 for patch 4), while at other sizes padding
    adds tokens to the later stages. Of another model, N counts the positions after the first convolution, and the kinds
    are those of its products. ``attention``: the part that is quadratic, N × N products.
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
        """N from which the softmax layers of a backbone, with their projections, cost more than everything else."""
        if SOFTMAX not in self.by_kind:
            return None
        softmax = self.by_kind[SOFTMAX]
        return (softmax - (self.total - softmax)).overtakes_at


def last_rise(a: float, b: float, c: float) -> float | None:
    """The largest N > 0 at which ``a·N² + b·N + c`` crosses zero upwards and stays above; None without one."""
    if a < 0 or (a == 0 and b <= 0):
        return None
    if a == 0:
        root = -c / b
    else:
        discriminant = b * b - 4 * a * c
        if discriminant < 0:
            return None
        # the larger root, in the form that doesn't subtract two nearly equal numbers
        q = -(b + (sqrt(discriminant) if b >= 0 else -sqrt(discriminant))) / 2
        root = max(q / a, c / q if q else 0.0)
    return root if root > 0 else None
