"""Do the closed form and the counters see the same matrix products?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sola_profile.cost.closed_form import ClosedForm
from sola_profile.measure.counts import Count, Uncounted

CLOSED_FORM = "closed form"


@dataclass(frozen=True)
class Difference:
    """A piece of the backbone on which a counter and the closed form disagree, in multiply-accumulates."""

    witness: str
    piece: str
    macs: int
    closed_form_macs: int

    @property
    def residual(self) -> int:
        """Counted minus closed form."""
        return self.macs - self.closed_form_macs


@dataclass(frozen=True)
class Agreement:
    """What every witness says about one case, and where they part.

    ``macs``: witness → multiply-accumulates of the batch, forward. ``differences``: pieces that differ, and
    ``"whole model"`` when the totals do. ``uncounted``: operators without a formula, by counter.
    """

    macs: Mapping[str, int]
    differences: tuple[Difference, ...]
    uncounted: Mapping[str, tuple[Uncounted, ...]]

    @property
    def exact(self) -> bool:
        """Whether all witnesses agree to the last multiply-accumulate, in total and on every piece."""
        return not self.differences

    @property
    def unknown(self) -> tuple[str, ...]:
        """Uncounted operators that may hide matrix products."""
        return tuple(
            sorted({entry.operator for entries in self.uncounted.values() for entry in entries if not entry.kind})
        )


def agreement(closed: ClosedForm, counts: Sequence[Count]) -> Agreement:
    """Set every counter against the closed form, exactly: a residual of one multiply-accumulate is a difference."""
    expected = {piece.name: piece.macs for piece in closed.pieces}
    differences = []
    for count in counts:
        if count.macs != closed.macs:
            differences.append(Difference(count.witness, "whole model", count.macs, closed.macs))
        differences += [
            Difference(count.witness, name, count.macs_by_piece.get(name, 0), macs)
            for name, macs in expected.items()
            if count.macs_by_piece.get(name, 0) != macs
        ]
    macs = {CLOSED_FORM: closed.macs, **{count.witness: count.macs for count in counts}}
    return Agreement(macs, tuple(differences), {count.witness: count.uncounted for count in counts})
