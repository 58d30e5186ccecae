"""Do the formulas of a model and independent counters see the same matrix products, kind by kind?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sola_profile.cost.breakdown import CLOSED_FORM, FORMULAS
from sola_profile.cost.recording import Recording
from sola_profile.cost.symbolic import total
from sola_profile.cost.work import COMPLEX, CONVOLUTION, DEPTHWISE
from sola_profile.measure.counts import Count

CONVOLUTIONS, MATMULS = "convolution", "matmul and attention"
FAMILIES = (CONVOLUTIONS, MATMULS)


@dataclass(frozen=True)
class Check:
    """One family of products in the eyes of all witnesses, in multiply-accumulates.

    ``blind``: witness that found less → operators it lists as having no formula; the formulas are blind where they find
    less than another and met operators that they don't know. Where neither is blind, one of the two is wrong.
    """

    family: str
    macs: Mapping[str, int]
    blind: Mapping[str, tuple[str, ...]]

    @property
    def residuals(self) -> dict[str, int]:
        """Witness → counted minus formulas."""
        return {name: macs - self.macs[FORMULAS] for name, macs in self.macs.items() if name != FORMULAS}

    @property
    def exact(self) -> bool:
        """No residual at all."""
        return not any(self.residuals.values())

    @property
    def contradicted_by(self) -> tuple[str, ...]:
        """Witnesses whose residual nothing explains."""
        return tuple(name for name, rest in self.residuals.items() if rest and not self._explains(name, rest))

    def _explains(self, name: str, rest: int) -> bool:
        return name in self.blind if rest < 0 else FORMULAS in self.blind

    @property
    def explained(self) -> bool:
        """Every residual belongs to a witness that says what it can't see."""
        return not self.contradicted_by


def check(recording: Recording, counts: Sequence[Count], closed_form_macs: int | None = None) -> tuple[Check, ...]:
    """Set counters beside a recording of one size; ``closed_form_macs``: of a spec's closed form, all families."""
    ours = {
        CONVOLUTIONS: total(call for call in recording.calls if call.kind in (CONVOLUTION, DEPTHWISE)).macs,
        MATMULS: total(call for call in recording.calls if call.kind not in (CONVOLUTION, DEPTHWISE)).macs,
    }
    # counters look at shapes, and those of complex numbers are like any others
    complex_products = tuple(sorted({call.operator for call in recording.calls if call.operator.endswith(COMPLEX)}))
    unknown = tuple(sorted({call.operator for call in recording.calls if not call.kind}))
    checks = []
    for family in FAMILIES:
        macs, blind = {FORMULAS: ours[family]}, {}
        for count in counts:
            macs[count.witness] = sum(
                value for name, value in count.macs_by_operator.items() if _family(name) == family
            )
            unseen = tuple(entry.operator for entry in count.uncounted if not entry.kind)
            if macs[count.witness] < ours[family] and (unseen or complex_products):
                blind[count.witness] = (*unseen, *complex_products)
        if unknown and max(macs.values()) > ours[family]:
            blind[FORMULAS] = unknown
        checks.append(Check(family, macs, blind))
    if closed_form_macs is not None:
        macs = {FORMULAS: sum(ours.values()), CLOSED_FORM: closed_form_macs}
        checks.append(Check("all", macs, {}))
    return tuple(checks)


def _family(operator: str) -> str:
    return CONVOLUTIONS if "conv" in operator else MATMULS
