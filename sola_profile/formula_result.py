"""What ``sola-profile formula`` found: the polynomials of a model, and what independent counters say at some sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sola_profile.case import Resolution
from sola_profile.compare.formula_check import Check
from sola_profile.cost.recording import Recording
from sola_profile.cost.symbolic import ModelFormula, Totals
from sola_profile.memory import PeakMemory


@dataclass(frozen=True)
class SizeRow:
    """One size. ``from_formula``: the recording is the formula's, else the size was counted by itself.

    ``memory``: predicted peak of the forward pass. ``measured_memory``: what the allocator handed out in a real one,
    None where that wasn't asked for; ``unmeasured`` says why it could not be had.
    ``missing``: witness → why it gave no count.
    """

    resolution: Resolution
    recording: Recording
    totals: Totals
    from_formula: bool
    checks: tuple[Check, ...]
    missing: Mapping[str, str]
    memory: PeakMemory
    measured_memory: PeakMemory | None = None
    unmeasured: str = ""

    @property
    def agree(self) -> bool:
        """Whether every witness that could count found the same, apart from operators that it says it can't see."""
        return all(check.explained for check in self.checks)

    @property
    def exact(self) -> bool:
        """Whether every witness that could count found the same to the last multiply-accumulate."""
        return all(check.exact for check in self.checks)


@dataclass(frozen=True)
class Coverage:
    """``share``: of the bytes moved, those of operators whose work is known. ``unknown``: the others by name."""

    share: float
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """The largest square image whose predicted peak fits in ``limit_bytes``; None where even the smallest doesn't.

    ``measured_memory``: of a real run at that size, None where that wasn't asked for.
    """

    limit_bytes: int
    resolution: Resolution | None = None
    memory: PeakMemory | None = None
    measured_memory: PeakMemory | None = None
    unmeasured: str = ""


@dataclass(frozen=True)
class FormulaResult:
    """Everything that one run found. ``rows``: by size; those of failed sizes are in ``failed`` with the reason.

    ``fit``: what fits in a given memory, None when that wasn't asked or there is no formula.
    """

    command: str
    formula: ModelFormula
    rows: tuple[SizeRow, ...]
    failed: Mapping[str, str]
    coverage: Coverage
    fit: Fit | None = None
