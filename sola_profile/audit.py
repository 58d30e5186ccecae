"""Published figures of models beside our own count, with what explains the difference between them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sola_profile.analysis import count_all
from sola_profile.case import Resolution, Settings
from sola_profile.cost.recording import Recording, record_at
from sola_profile.cost.symbolic import total
from sola_profile.errors import first_line
from sola_profile.measure import fvcore_counter
from sola_profile.source import ModelSource, read_source
from sola_profile.workload import Workload, build

FIGURES = Path(__file__).parent / "published" / "figures.json"

AGREES = "agrees"
NORMS = "counts norms too"
BLIND = "misses fused attention"
BOTH = "misses fused attention, counts norms"
OTHER_MODEL = "another model by its parameters"
UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Figure:
    """What somebody published: text, since its last digit says how far it is rounded. ``params_m``: empty if not given.

    ``gmacs``: 10⁹ multiply-accumulates, whatever the publication calls them. ``source``: key of its ``Source``.
    """

    model: str
    size: str
    gmacs: str
    source: str
    params_m: str = ""


@dataclass(frozen=True)
class Source:
    """Where figures stand, and what a reader must know about them."""

    where: str
    note: str


@dataclass(frozen=True)
class Audited:
    """A published figure beside ours.

    ``macs``: multiply-accumulates of matrix products. ``fused_macs``: those inside fused attention. ``others``: what fvcore
    adds for norms, pooling and resampling. ``explanation``: the first account under which both are the same number.
    """

    figure: Figure
    macs: int
    parameters: int
    fused_macs: int
    others: int
    explanation: str

    @property
    def residual(self) -> float:
        """Published over ours, minus 1."""
        return float(self.figure.gmacs) * 1e9 / self.macs - 1

    @property
    def parameters_agree(self) -> bool | None:
        """Whether both have the same number of parameters, as far as the published one is rounded; None without one."""
        return None if not self.figure.params_m else _same(self.figure.params_m, self.parameters / 1e6)


def read_figures(path: Path = FIGURES) -> tuple[tuple[Figure, ...], dict[str, Source]]:
    """The figures that come with the package, and their sources."""
    document = json.loads(path.read_text(encoding="utf-8"))
    sources = {name: Source(**entry) for name, entry in document["sources"].items()}
    return tuple(Figure(**entry) for entry in document["figures"]), sources


class Audit:
    """Goes through figures; ``rows`` and ``failed`` (figure → reason) hold what is finished by now."""

    def __init__(self, figures: Sequence[Figure]) -> None:
        self._figures = figures
        self.rows: list[Audited] = []
        self.failed: dict[Figure, str] = {}

    def run(self) -> Iterator[str]:
        """Count model by model; yields what is done next."""
        counted: dict[tuple[str, str], _Counted] = {}
        for figure in self._figures:
            key = (figure.model, figure.size)
            yield f"counting {figure.model} at {figure.size}"
            try:
                if key not in counted:
                    counted[key] = _count(read_source(figure.model), Resolution.parse(figure.size))
            except Exception as error:
                self.failed[figure] = first_line(error)
                continue
            self.rows.append(audited(figure, counted[key]))


@dataclass(frozen=True)
class _Counted:
    macs: int
    parameters: int
    fused_macs: int
    others: int


def audited(figure: Figure, found: _Counted) -> Audited:
    """A figure with the first account that gives it."""
    accounts: Mapping[str, int] = {
        AGREES: found.macs,
        NORMS: found.macs + found.others,
        BLIND: found.macs - found.fused_macs,
        BOTH: found.macs - found.fused_macs + found.others,
    }
    matching = (name for name, macs in accounts.items() if _same(figure.gmacs, macs / 1e9))
    explanation = next(matching, UNEXPLAINED)
    if figure.params_m and not _same(figure.params_m, found.parameters / 1e6):
        explanation = OTHER_MODEL
    return Audited(figure, found.macs, found.parameters, found.fused_macs, found.others, explanation)


def _same(published: str, value: float) -> bool:
    """Whether a value rounds to what was published; the next digit may have been cut off instead."""
    step = 10.0 ** -len(published.partition(".")[2])
    return -0.5 * step <= value - float(published) < step


def _count(source: ModelSource, resolution: Resolution) -> _Counted:
    recording, workload = _followed(source, resolution)
    counts, _ = count_all(workload, resolution)
    others = sum(sum(count.others.values()) for count in counts if count.witness == fvcore_counter.NAME)
    fused = [call for call in recording.calls if "scaled_dot_product" in call.operator]
    return _Counted(total(recording.calls).macs, recording.parameters, total(fused).macs, others)


def _followed(source: ModelSource, resolution: Resolution) -> tuple[Recording, Workload]:
    """The calls of a model, built anew for the size where it takes no other."""
    shape = source.default_input
    try:
        recording, size = record_at(source, shape, "float32", resolution), None
    except Exception:
        recording, size = record_at(source, shape, "float32", resolution, sized=True), resolution
    return recording, build(source, Settings(), "meta", shape=shape, resolution=size)
