"""Where softmax layers go: what was asked, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

from sola_profile.case import Resolution, Settings, whole_number
from sola_profile.hardware import Machine
from sola_profile.machine import Environment
from sola_profile.measure.latency import Latency
from sola_profile.measure.statistics import Interval
from sola_profile.memory import PeakMemory
from sola_profile.study.reach import HORIZON, RUN
from sola_profile.study.space import LATENCY, MACS
from sola_vision.spec import BackboneSpec

ACCURACY, AREA = "accuracy", "erf"


@dataclass(frozen=True)
class ScoreKind:
    """A measure of reach. ``listed``: it is known for some patterns only, so the front is that of those."""

    name: str
    title: str
    more_is_better: bool
    listed: bool = False


SCORES: Mapping[str, ScoreKind] = {
    kind.name: kind
    for kind in (
        ScoreKind(RUN, "Longest linear run", more_is_better=False),
        ScoreKind(HORIZON, "Mean reach", more_is_better=True),
        ScoreKind(ACCURACY, "Accuracy (%)", more_is_better=True, listed=True),
        ScoreKind(AREA, "ERF area", more_is_better=True, listed=True),
    )
}
# what a front is drawn against
COSTS = (LATENCY, MACS)


@dataclass(frozen=True)
class Budgets:
    """The most that a pattern may have; None for no limit. ``macs``: of the whole batch."""

    softmax: int | None = None
    latency_s: float | None = None
    macs: float | None = None
    memory_bytes: float | None = None

    def __post_init__(self) -> None:
        if self.softmax is not None:
            object.__setattr__(self, "softmax", whole_number("softmax", self.softmax, least=0))
        for name, value in vars(self).items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
            # NaN is not at least 0 either
            if value is not None and not float(value) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")

    @property
    def any(self) -> bool:
        """Whether there is a limit."""
        return any(value is not None for value in vars(self).values())


@dataclass(frozen=True)
class Question:
    """What to place, where, and how it is judged.

    ``spec``: the backbone, with the bridges to keep where they fit. ``pattern``: that everything is compared with; the
    spec's unless given. ``score``: one of ``SCORES``. ``stages``: whose layers
    are free. ``swaps``: changes of one layer such as ``3.4=S`` to show. ``table``: of accuracies, for the score of that
    name; the paper's unless given. ``decay_per``: of WKV layers, for the horizon; the spec's unless given. ``budget_s``: for
    all measuring; None measures nothing, and MACs are the cost. ``machine``: whose ceilings predict the time of
    every layer, instead of measuring. ``cost``: what the front is drawn against; latency where it is known, unless given.
    ``source``: the factory that gave the spec, for the report.
    """

    spec: BackboneSpec
    resolution: Resolution
    settings: Settings = field(default_factory=Settings)
    pattern: str | None = None
    score: str = RUN
    budgets: Budgets = field(default_factory=Budgets)
    stages: tuple[int, ...] = (1, 2, 3, 4)
    swaps: tuple[str, ...] = ()
    table: Path | None = None
    decay_per: str | None = None
    budget_s: float | None = None
    machine: Machine | None = None
    cost: str | None = None
    command: str = ""
    source: str = ""

    @property
    def mixers(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The WKV layers with another decay, as ``create_model`` takes them; empty where the spec's is kept."""
        if self.decay_per is None:
            return {}
        return {
            letter: (mixer.name, {**dict(mixer.options), "decay_per": self.decay_per})
            for letter, mixer in self.spec.mixers.items()
            if mixer.name == "wkv"
        }


@dataclass(frozen=True)
class Option:
    """A pattern with what it costs and how far it reaches.

    ``latency_s`` and ``interval_s``: predicted from its layers. ``score``: None where it is not known. ``names``: what it is
    known as, such as ``sola_t``. ``within``: whether it keeps to the budgets, as far as its costs are known.
    """

    pattern: str
    softmax: int
    macs: int
    latency_s: float | None
    interval_s: Interval | None
    score: float | None
    memory: PeakMemory | None = None
    names: tuple[str, ...] = ()
    within: bool = True
    on_front: bool = False

    def cost(self, name: str) -> float | None:
        """MACs, or nanoseconds."""
        if name == MACS:
            return float(self.macs)
        return None if self.latency_s is None else 1e9 * self.latency_s

    def judged(self, budgets: Budgets) -> Option:
        """The same, held against the budgets. A latency or a memory that isn't known breaks none."""
        memory_bytes = None if self.memory is None else self.memory.total_bytes
        pairs = (
            (self.softmax, budgets.softmax),
            (self.macs, budgets.macs),
            (self.latency_s, budgets.latency_s),
            (memory_bytes, budgets.memory_bytes),
        )
        return replace(self, within=all(have is None or most is None or have <= most for have, most in pairs))


@dataclass(frozen=True)
class Swap:
    """The backbone's own pattern with one layer changed."""

    change: str
    option: Option


@dataclass(frozen=True)
class Confirmation:
    """A whole model measured beside the prediction from its layers; ``latency`` is None where memory ran out."""

    option: Option
    latency: Latency | None

    @property
    def residual(self) -> float | None:
        """Measured over predicted, minus 1."""
        if self.latency is None or not self.option.latency_s:
            return None
        return self.latency.median_s / self.option.latency_s - 1


@dataclass(frozen=True)
class Placement:
    """The answer. ``front``: from cheap to dear, all of it. ``references``: known patterns, on the front or not.

    ``size``: how many patterns there are. ``cost``: what the front is drawn against. ``limit``: the cost that the chosen
    pattern may have where no budget was given, that of the own pattern. ``parts``: measured time of every part by name.
    ``remarks``: what a reader must know besides. ``searched_s``: time of the search.
    """

    question: Question
    score: ScoreKind
    cost: str
    size: int
    front: tuple[Option, ...]
    references: tuple[Option, ...]
    own: Option
    chosen: Option | None
    limit: float | None
    swaps: tuple[Swap, ...]
    confirmations: tuple[Confirmation, ...]
    parts: Mapping[str, Latency]
    remarks: tuple[str, ...]
    environment: Environment
    started: str
    searched_s: float
    interrupted: bool = False

    @property
    def model(self) -> str | None:
        """The chosen pattern behind the name, as ``sola-profile --model`` takes it for a preset."""
        return None if self.chosen is None else f"{self.question.spec.name}[{self.chosen.pattern}]"
