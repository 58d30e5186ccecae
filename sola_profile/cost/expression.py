"""Polynomials of a model in the letters that a reader wants: N positions, or the sides H and W in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import sympy
from sympy.polys.rings import PolyElement

from sola_profile.cost.symbolic import FEWEST_STRIDES, INTERPOLATED, PROVED, ModelFormula
from sola_profile.cost.work import Size

# powers of the letters of a term
Powers = tuple[int, ...]

_RAISED = {1: "", 2: "²", 3: "³", 4: "⁴"}


@dataclass(frozen=True)
class Expression:
    """A polynomial with exact coefficients: ``letters`` are ``("N",)`` or ``("H", "W")``, highest powers first."""

    letters: tuple[str, ...]
    terms: Mapping[Powers, Fraction]

    def sympy(self) -> sympy.Expr:
        """The same for sympy, with positive whole symbols."""
        symbols = sympy.symbols(self.letters, positive=True, integer=True)
        parts = [
            sympy.Rational(c.numerator, c.denominator)
            * sympy.prod([s**p for s, p in zip(symbols, powers, strict=True)])
            for powers, c in self.terms.items()
        ]
        return sympy.Add(*parts)


def monomial(letters: tuple[str, ...], powers: Powers) -> str:
    """``N²``, ``H·W``, or ``1`` for the constant."""
    factors = [
        f"{letter}{_RAISED.get(power, f'^{power}')}" for letter, power in zip(letters, powers, strict=True) if power
    ]
    return "·".join(factors) or "1"


class Letters:
    """Chooses the letters for some quantities of one formula, the same for all of them.

    N where every term is a power of h·w, so that only the number of positions counts; otherwise H and W in pixels.
    """

    def __init__(self, formula: ModelFormula, quantities: Iterable[Size]) -> None:
        assert formula.recording is not None
        self._patch, self._stride = formula.recording.patch, formula.stride
        self._first = self._stride * (PROVED[0] if formula.route == INTERPOLATED else FEWEST_STRIDES)
        polynomials = [quantity for quantity in quantities if isinstance(quantity, PolyElement)]
        positions = all(a == b for quantity in polynomials for a, b in quantity.monoms())
        self.names: tuple[str, ...] = ("N",) if positions else ("H", "W")

    @property
    def definition(self) -> str:
        """What the letters mean and for which images."""
        where = f"exact where both sides divide by {self._stride}, from {self._first} on"
        if self.names != ("N",):
            return f"H × W pixels; {where}"
        if self._patch == 1:
            return f"N = H · W pixels; {where}"
        return f"N = H/{self._patch} · W/{self._patch}, the positions after the first convolution; {where}"

    def express(self, quantity: Size) -> Expression:
        """A quantity in these letters."""
        if not isinstance(quantity, PolyElement):
            zero: Powers = (0,) * len(self.names)
            return Expression(self.names, {zero: Fraction(int(quantity))} if quantity else {})
        terms: dict[Powers, Fraction] = {}
        for (a, b), coefficient in quantity.terms():
            value = Fraction(int(coefficient.numerator), int(coefficient.denominator))
            if self.names == ("N",):
                terms[(a,)] = value * Fraction(self._patch, self._stride) ** (2 * a)
            else:
                terms[a, b] = value / self._stride ** (a + b)
        return Expression(self.names, dict(sorted(terms.items(), key=lambda term: (-sum(term[0]), term[0][::-1]))))
