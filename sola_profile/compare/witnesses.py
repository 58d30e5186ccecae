"""Do all who count a model's matrix products see the same?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sola_profile.compare.formula_check import check
from sola_profile.cost.breakdown import Breakdown
from sola_profile.cost.recording import Recording
from sola_profile.measure.counts import Count, Uncounted

WHOLE_MODEL = "whole model"


@dataclass(frozen=True)
class Difference:
    """A piece on which a witness and the reference disagree, in multiply-accumulates."""

    witness: str
    piece: str
    macs: int
    expected_macs: int

    @property
    def residual(self) -> int:
        """Counted minus expected."""
        return self.macs - self.expected_macs


@dataclass(frozen=True)
class Agreement:
    """What every witness says about one case, and where they part from the ``reference``, the first of them.

    ``macs``: witness → multiply-accumulates of the batch, forward. ``differences``: pieces that differ, and
    ``"whole model"`` when the totals do. ``uncounted``: operators without a formula, by counter. ``blind``: a witness
    that found less, the reference too, and lists operators that it can't see → those operators; that is no difference.
    ``absent``: a witness that gave no count → the reason. ``by_kind``: kind → witness → multiply-accumulates; kinds are
    those of a backbone's layers, or families of products.
    """

    reference: str
    macs: Mapping[str, int]
    differences: tuple[Difference, ...]
    uncounted: Mapping[str, tuple[Uncounted, ...]]
    blind: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    by_kind: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether all that could see everything agree to the last multiply-accumulate, on every piece."""
        return not self.differences

    @property
    def unknown(self) -> tuple[str, ...]:
        """Uncounted operators that may hide matrix products."""
        return tuple(
            sorted({entry.operator for entries in self.uncounted.values() for entry in entries if not entry.kind})
        )


def agreement(closed: Breakdown, counts: Sequence[Count]) -> Agreement:
    """Set every counter against the closed form, exactly: a residual of one multiply-accumulate is a difference."""
    expected = {piece.name: piece.macs for piece in closed.pieces}
    differences = []
    for count in counts:
        if count.macs != closed.macs:
            differences.append(Difference(count.witness, WHOLE_MODEL, count.macs, closed.macs))
        differences += [
            Difference(count.witness, name, count.macs_by_piece.get(name, 0), macs)
            for name, macs in expected.items()
            if count.macs_by_piece.get(name, 0) != macs
        ]
    macs = {closed.origin: closed.macs, **{count.witness: count.macs for count in counts}}
    by_kind = {
        kind: {
            closed.origin: value,
            **{
                count.witness: sum(count.macs_by_piece.get(p.name, 0) for p in closed.pieces if p.kind == kind)
                for count in counts
            },
        }
        for kind, value in closed.macs_by_kind.items()
    }
    return Agreement(closed.origin, macs, tuple(differences), _uncounted(counts), by_kind=by_kind)


def family_agreement(
    cost: Breakdown, recording: Recording, counts: Sequence[Count], absent: Mapping[str, str]
) -> Agreement:
    """Set counters against the operators' formulas of a model whose pieces they don't know, by family of products."""
    checks = check(recording, counts)
    differences: list[Difference] = []
    blind: dict[str, tuple[str, ...]] = {}
    for family in checks:
        blind.update(family.blind)
        expected = family.macs[cost.origin]
        differences += [Difference(name, family.family, family.macs[name], expected) for name in family.contradicted_by]
    macs = {cost.origin: cost.macs, **{count.witness: count.macs for count in counts}}
    # what a counter doesn't know either has a formula here, or is named below
    uncounted = {
        name: tuple(replace(entry, kind=entry.kind or "counted by the formulas") for entry in entries)
        for name, entries in _uncounted(counts).items()
    }
    unknown = Counter(call.operator for call in recording.calls if not call.kind)
    if unknown:
        uncounted[cost.origin] = tuple(Uncounted(name, number, "") for name, number in sorted(unknown.items()))
    by_kind = {family.family: dict(family.macs) for family in checks}
    return Agreement(cost.origin, macs, tuple(differences), uncounted, blind, absent, by_kind)


def _uncounted(counts: Sequence[Count]) -> dict[str, tuple[Uncounted, ...]]:
    return {count.witness: count.uncounted for count in counts if count.uncounted}
