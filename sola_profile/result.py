"""The one object that a sweep produces and every report reads. Numbers in plain units, nothing formatted."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from sola_profile.case import Case, Resolution, Settings
from sola_profile.compare.growth_class import GrowthClass
from sola_profile.compare.overtaking import Crossover
from sola_profile.compare.scaling import Fit, Slope
from sola_profile.compare.witnesses import Agreement
from sola_profile.cost.breakdown import Breakdown
from sola_profile.cost.formula_cost import Growth
from sola_profile.cost.polynomial import Complexity
from sola_profile.hardware import Span
from sola_profile.machine import Environment
from sola_profile.measure.kind_times import KindTimes
from sola_profile.measure.latency import Latency
from sola_profile.memory import Moment, PeakMemory
from sola_profile.source import InputShape, ModelSource
from sola_vision.spec import BackboneSpec

MODEL = "model"


@dataclass(frozen=True)
class OverBudget:
    """Not measured: a run would take about this long, more than is left of the time budget."""

    estimated_s: float
    budget_s: float


@dataclass(frozen=True)
class OutOfMemory:
    """Not measured: the step doesn't fit. Without ``free_bytes`` it was tried; else its predicted peak was too much."""

    needed_bytes: int
    free_bytes: int | None = None


@dataclass(frozen=True)
class NotReached:
    """Not measured: the run was stopped before its turn came."""


@dataclass(frozen=True)
class LeftOut:
    """Not measured: it makes no sense here, or it failed; the reason is a sentence."""

    reason: str


@dataclass(frozen=True)
class Killed:
    """Not measured: its process ended with this exit code, or by this signal where it is below 0."""

    exit_code: int


Missing = OverBudget | OutOfMemory | NotReached | LeftOut | Killed


def ran_out_of_memory(missing: Missing | None) -> bool:
    """Whether memory is why there is no measurement; a process that is killed by force has nearly always had too much."""
    killed = isinstance(missing, Killed) and missing.exit_code == -signal.SIGKILL
    return killed or isinstance(missing, OutOfMemory)


@dataclass(frozen=True)
class LayerTime:
    """One layer at one size by the machine's ceilings: ``flops`` and ``moved_bytes`` of all its operators, predicted
    ``time_s``, and what ``bound`` takes most of it: ``compute``, ``memory`` or ``overhead``.
    """

    name: str
    kind: str
    flops: int
    moved_bytes: int
    time_s: float
    bound: str


@dataclass(frozen=True)
class Roofs:
    """The best rate of matrix products that the machine has for any shape, and its bandwidth beyond the caches."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Row:
    """One model at one size. What is None was not asked for or could not be had; ``missing`` says why.

    ``tokens_per_stage``: of a backbone, after padding; of another model, the positions after its first convolution.
    ``counted_parameters``: numbers in the built module, a check of the closed form. ``step_macs``: multiply-accumulates
    of a whole training step, counted; ``cost`` and ``agreement`` speak of the forward pass. ``moved_bytes``: that this reads
    and writes where every operator fetches its operands and leaves its result. ``memory_timeline``: predicted, of the largest
    size of the model only. ``predicted_time``: seconds of the forward pass by the machine's ceilings,
    where such are kept; ``layers``: of those with matrix products.
    """

    case: Case
    cost: Breakdown
    tokens_per_stage: tuple[int, ...]
    counted_parameters: int
    predicted_memory: PeakMemory
    agreement: Agreement | None = None
    step_macs: int | None = None
    moved_bytes: int | None = None
    measured_memory: PeakMemory | None = None
    latency: Latency | None = None
    kind_times: KindTimes | None = None
    missing: Missing | None = None
    memory_timeline: tuple[Moment, ...] = ()
    predicted_time: Span | None = None
    layers: tuple[LayerTime, ...] = ()

    @property
    def resolution(self) -> Resolution:
        """The image size."""
        return self.case.resolution

    @property
    def tokens(self) -> int:
        """N: tokens of stage 1, or positions after the first convolution."""
        return self.tokens_per_stage[0]


@dataclass(frozen=True)
class Scaling:
    """How one model grows with N: exactly in matrix products, by fit in measured time.

    ``complexity``: None where the matrix products are no quadratic in N. ``latency_class``: what the measured sizes leave
    open, None below two of them.
    """

    complexity: Complexity | None
    macs_slopes: tuple[Slope, ...]
    latency_fit: Fit | None
    latency_slopes: tuple[Slope, ...]
    latency_class: GrowthClass | None = None


@dataclass(frozen=True)
class Contender:
    """A model of the comparison with its rows, from few tokens to many.

    ``role``: ``model`` for the one that was asked for, ``linear`` or ``softmax`` for a twin of it, else its name.
    ``patch``: pixels per side of what N counts. ``growth``: of a model without a spec, what its formula says.
    ``refused``: size → why the model doesn't take it.
    """

    role: str
    source: ModelSource
    rows: tuple[Row, ...]
    scaling: Scaling
    patch: int
    growth: Growth | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the command line knows it."""
        return self.source.name

    @property
    def spec(self) -> BackboneSpec | None:
        """Of a backbone of ``sola_vision``."""
        return self.source.spec

    @property
    def nothing_fitted(self) -> bool:
        """Whether sizes were to be measured and memory was too little for every one of them."""
        return all(row.latency is None and ran_out_of_memory(row.missing) for row in self.rows)

    def row_at(self, resolution: Resolution) -> Row | None:
        """The row of a size, if it is there."""
        return next((row for row in self.rows if row.resolution == resolution), None)


@dataclass(frozen=True)
class Profile:
    """Everything that one ``sola-profile`` run found.

    ``contenders``: the model first, then its twins with every layer linear and with every layer softmax, then others
    that were named. ``shape``: of what the model takes.
    ``helpful_sizes``: further square sizes that would give the latency fit freedom. ``interrupted``: stopped by hand.
    ``crossovers``: of the model and each of its twins, the one that costs more in the long run first.
    ``roofs``: of the machine whose ceilings predict times, None where none is kept.
    """

    command: str
    started: str
    environment: Environment
    settings: Settings
    shape: InputShape
    budget_s: float | None
    contenders: tuple[Contender, ...]
    helpful_sizes: tuple[int, ...]
    interrupted: bool
    crossovers: tuple[Crossover, ...] = ()
    roofs: Roofs | None = None

    @property
    def model(self) -> Contender:
        """The one that was asked for."""
        return self.contenders[0]

    @property
    def twins(self) -> Mapping[str, Contender]:
        """The others by role."""
        return {contender.role: contender for contender in self.contenders[1:]}
