"""The cost of any model in the shape that the closed form of a backbone has, from the formulas of its operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from sola_profile.cost.breakdown import FORMULAS, Breakdown, PieceCost
from sola_profile.cost.expression import Expression, Letters
from sola_profile.cost.polynomial import Complexity, Polynomial
from sola_profile.cost.recording import Call, Recording
from sola_profile.cost.symbolic import ModelFormula, Totals, grouped, total
from sola_profile.cost.work import PRODUCT_KINDS

# kind of the pieces without matrix products
OTHERS = "no matrix product"
# the piece of what a model computes outside all of its parts
ROOT = "(the model itself)"


@dataclass(frozen=True)
class Growth:
    """The multiply-accumulates of a whole batch as a formula of the image's size, as far as there is one.

    ``route``: how it was found (``cost.symbolic``). ``why``: what stands against a better one. ``stride``: both sides
    must divide by it. ``definition``: what the letters mean, and where it is exact.
    """

    route: str
    why: str
    stride: int
    definition: str = ""
    macs: Expression | None = None


def growth(formula: ModelFormula) -> Growth:
    """What a formula says about the matrix products."""
    if formula.total is None:
        return Growth(formula.route, formula.why, formula.stride)
    letters = Letters(formula, [formula.total.macs])
    return Growth(formula.route, formula.why, formula.stride, letters.definition, letters.express(formula.total.macs))


def formula_complexity(formula: ModelFormula) -> Complexity | None:
    """Multiply-accumulates of one image as polynomials in N; None where they are none, or of a higher degree."""
    if formula.recording is None:
        return None
    by_kind = {kind: part.macs for kind, part in by_product(formula.recording.calls).items()}
    letters = Letters(formula, by_kind.values())
    if letters.names != ("N",):
        return None
    found = {kind: _quadratic(letters.express(macs), formula.shape.batch) for kind, macs in by_kind.items()}
    whole = Polynomial(Fraction(0), Fraction(0), Fraction(0))
    parts = {}
    for kind in PRODUCT_KINDS:
        part = found.get(kind, whole - whole)
        if part is None:
            return None
        parts[kind] = part
    for part in parts.values():
        whole += part
    return Complexity(whole, parts, Polynomial(whole.a, Fraction(0), Fraction(0)))


def by_product(calls: Iterable[Call]) -> dict[str, Totals]:
    """Totals by kind of matrix product, those without one together."""
    return grouped(calls, _kind)


def _kind(call: Call) -> str:
    return call.kind if call.kind in PRODUCT_KINDS else OTHERS


def _quadratic(expression: Expression, batch: int) -> Polynomial | None:
    powers = {power for (power,) in expression.terms}
    if powers - {0, 1, 2}:
        return None
    return Polynomial(*(expression.terms.get((power,), Fraction(0)) / batch for power in (2, 1, 0)))


def formula_breakdown(recording: Recording, model: nn.Module) -> Breakdown:
    """The calls of one size by module and kind of product, with the parameters that each module owns itself."""
    owned = Counter[str]()
    for name, parameter in model.named_parameters():
        owned[name.rpartition(".")[0]] += parameter.numel()
    groups: dict[tuple[str, str], list[Call]] = {}
    for call in recording.calls:
        groups.setdefault((call.module, _kind(call)), []).append(call)
    pieces = []
    for (module, kind), calls in groups.items():
        work = total(calls)
        pieces.append(PieceCost(module or ROOT, kind, work.macs, work.scalar_ops, owned.pop(module, 0)))
    # weights that another module uses, such as those of multi-head attention
    pieces += [PieceCost(module or ROOT, OTHERS, 0, {}, number) for module, number in owned.items()]
    return Breakdown(tuple(pieces), PRODUCT_KINDS, FORMULAS)
