"""The one object that ``sola-profile kernels`` produces and its reports read. Numbers in plain units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sola_profile.compare.ratios import Ratio
from sola_profile.compare.shares import Shares, shares
from sola_profile.cost.kernels import Work
from sola_profile.kernel_case import KernelCase
from sola_profile.machine import Environment
from sola_profile.measure.ceilings import Ceilings
from sola_profile.measure.latency import Latency
from sola_profile.measure.statistics import Interval
from sola_profile.result import Missing


@dataclass(frozen=True)
class Backend:
    """One way that the compiled operators could run; ``reason``: why not, empty for the chosen one."""

    kind: str
    name: str
    chosen: bool
    reason: str


@dataclass(frozen=True)
class RouteResult:
    """One route of a case, ours or a peer's.

    ``calls``: calls in one sample, whose times are per call. ``ratio``: its time over ours. ``error``: the largest
    deviation from float64 over the largest magnitude, the worst of output and gradients. ``compile_s``: first call
    under ``torch.compile``. What is None could not be had; ``missing`` says why there is no latency.
    """

    name: str
    what: str
    calls: int = 1
    latency: Latency | None = None
    ratio: Ratio | None = None
    error: float | None = None
    compile_s: float | None = None
    missing: Missing | None = None


@dataclass(frozen=True)
class KernelRow:
    """One case with all its routes, ours first."""

    case: KernelCase
    work: Work
    routes: tuple[RouteResult, ...]

    @property
    def ours(self) -> RouteResult:
        """The compiled operator."""
        return self.routes[0]

    @property
    def peers(self) -> tuple[RouteResult, ...]:
        """The routes of PyTorch."""
        return self.routes[1:]


@dataclass(frozen=True)
class Crossover:
    """Where linear attention overtakes softmax attention, both ours, batch 1.

    ``analytical_tokens``: where both have as many multiply-accumulates. ``tokens``: measured, None when there is no
    crossing among the ``points``: (N, time of softmax over time of linear).
    """

    dim: int
    heads: int
    dtype: str
    mode: str
    threads: int
    analytical_tokens: float
    tokens: float | None
    interval: Interval | None
    points: tuple[tuple[int, Ratio], ...]


@dataclass(frozen=True)
class ModelRow:
    """A model's forward pass with our operators, and with each replaced by its best route in PyTorch.

    ``difference``: the largest one of the two outputs, over the largest output.
    """

    model: str
    resolution: str
    dtype: str
    threads: int
    ours: Latency | None = None
    peer: Latency | None = None
    ratio: Ratio | None = None
    difference: float | None = None
    missing: Missing | None = None


@dataclass(frozen=True)
class KernelReport:
    """Everything that one run of ``sola-profile kernels`` found. ``ceilings``: by number of threads."""

    command: str
    started: str
    environment: Environment
    backends: tuple[Backend, ...]
    ceilings: Mapping[int, Ceilings]
    budget_s: float
    rows: tuple[KernelRow, ...]
    crossovers: tuple[Crossover, ...]
    models: tuple[ModelRow, ...]
    interrupted: bool

    def shares(self, row: KernelRow) -> Shares | None:
        """What ours reaches in a row, beside the ceilings for its number of threads; None while unmeasured."""
        ceilings = self.ceilings.get(row.case.threads)
        if ceilings is None or row.ours.latency is None:
            return None
        return shares(row.work, row.ours.latency.median_s, ceilings, row.case.dtype)
