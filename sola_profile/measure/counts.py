"""What an operator counter found: matrix products it counted, and operators it has no formula for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sola_profile.operators import operator_kind


@dataclass(frozen=True)
class Uncounted:
    """An operator that ran without a formula. ``kind`` says why that is right, or is empty when nobody knows."""

    operator: str
    calls: int
    kind: str


@dataclass(frozen=True)
class Count:
    """The matrix products that one witness found, in multiply-accumulates, by operator and by piece of the backbone.

    ``others``: what a witness counts beside them in its own way, by operator, such as norms.
    """

    witness: str
    macs_by_operator: Mapping[str, int]
    macs_by_piece: Mapping[str, int]
    uncounted: tuple[Uncounted, ...] = ()
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """All matrix products."""
        return sum(self.macs_by_operator.values())


def uncounted(calls: Mapping[str, int]) -> tuple[Uncounted, ...]:
    """Sorted entries for operators by name, such as ``aten::mul``."""
    return tuple(Uncounted(name, number, operator_kind(name)) for name, number in sorted(calls.items()))
