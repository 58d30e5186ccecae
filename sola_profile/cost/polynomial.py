"""Closed-form cost as an exact polynomial ``a·N² + b·N + c`` in the tokens of stage 1."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import sqrt


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
