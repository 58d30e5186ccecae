"""Torch's symbolic sizes as polynomials in h and w."""

from __future__ import annotations

import re
import time
from math import lcm
from typing import Any

import sympy
import torch
from sympy.polys.polyerrors import PolynomialError
from sympy.polys.rings import PolyElement, ring
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sola_profile.cost.work import Size

# rational coefficients, so that n·(n+1)/2 is exact
RING, ROWS, COLUMNS = ring("h,w", sympy.QQ)


class NotPolynomial(ValueError):  # noqa: N818  a finding about the model rather than an error
    """The model's shapes aren't polynomials in the sides of the image; the message says which, or what stopped it.

    ``divisor``: what the sides should divide by as well for this shape to come out even, 1 where that is unknown.
    """

    def __init__(self, message: str, divisor: int = 1) -> None:
        super().__init__(message)
        self.divisor = divisor


# elements from which PyTorch 2.13 leaves a convolution of one image to oneDNN (ATen/native/Convolution.cpp)
_LARGE_MAP = sympy.Integer(20480)


class Symbols:
    """Turns torch's symbolic sizes into polynomials in h and w."""

    def __init__(self, environment: ShapeEnv, sides: list[Any], deadline: float) -> None:
        self._environment, self._sides = environment, [side.node.expr for side in sides]
        self._deadline = deadline
        self._names = dict(zip(self._sides, sympy.symbols("h w"), strict=True))
        self._known: dict[Any, PolyElement] = {}

    def check(self) -> None:
        """Raise ``NotPolynomial`` when a side has become a constant, or the time is over."""
        if time.monotonic() > self._deadline:
            raise NotPolynomial("its shapes took too long to work out")
        for name, side in zip(("height", "width"), self._sides, strict=True):
            if self._environment.replace(side) != side:
                raise NotPolynomial(f"the model fixes the {name} of its image")

    def conditions(self) -> tuple[sympy.Basic, ...]:
        """What has been asked of h and w, each once, without PyTorch's own question of how large a map it convolves.

        Its answer picks a library for a convolution, which changes no shape and no formula.
        """
        asked = [guard.expr.xreplace(self._names) for guard in self._environment.guards]
        return tuple(condition for condition in dict.fromkeys(asked) if _LARGE_MAP not in condition.args)

    def named(self, text: str) -> str:
        """A message of torch's with h and w for the names that it gave them."""
        for side, name in self._names.items():
            text = re.sub(rf"\b{side}\b", str(name), text)
        return text

    def size(self, value: int | torch.SymInt) -> Size:
        """A polynomial, or a whole number; raises ``NotPolynomial`` where it is neither."""
        if not isinstance(value, torch.SymInt):
            return int(value)
        expression = value.node.expr
        if expression not in self._known:
            named = _without_roundings(self._environment.replace(expression).xreplace(self._names))
            try:
                self._known[expression] = RING.from_expr(named)
            except (ValueError, PolynomialError) as error:
                raise NotPolynomial(f"a size of {named} is no polynomial", _divisor(named)) from error
        return self._known[expression]


def _without_roundings(expression: sympy.Expr) -> sympy.Expr:
    """Work divisions and roundings out where the result is whole for every h and w, as in ``⌈32·h / 2⌉``."""
    if not expression.args:
        return expression
    args = [_without_roundings(arg) for arg in expression.args]
    name = type(expression).__name__
    if name == "IntTrueDiv":
        return args[0] / args[1]
    if name in _ROUNDINGS and _whole(args[0]):
        return args[0]
    if name in _DIVISIONS and _whole(args[0] / args[1]):
        return sympy.Integer(0) if name.endswith("Mod") else args[0] / args[1]
    return expression.func(*args)


def _whole(expression: sympy.Expr) -> bool:
    """Whether an expression is a polynomial with whole coefficients."""
    free = expression.free_symbols
    if not free:
        return bool(expression.is_Integer)
    return bool(expression.is_polynomial()) and all(c.is_Integer for c in sympy.Poly(expression, *free).coeffs())


_ROUNDINGS = frozenset(("CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt"))


def _divisor(expression: sympy.Expr) -> int:
    """The least common multiple of all whole numbers that the expression divides by."""
    parts = list(sympy.preorder_traversal(expression))
    divisors = [int(part.args[1]) for part in parts if type(part).__name__ in _DIVISIONS and part.args[1].is_Integer]
    return lcm(*divisors, *(int(part.q) for part in parts if part.is_Rational))


# torch's own functions of sizes, whose second argument is the divisor
_DIVISIONS = frozenset(("FloorDiv", "CleanDiv", "Mod", "PythonMod"))
