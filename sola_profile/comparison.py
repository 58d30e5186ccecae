"""Two profiles of one model side by side: what was counted, what was measured, and whether they may be compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from sola_profile.case import Settings
from sola_profile.compare.gate import Figure, Time, Verdict, judge, judge_time
from sola_profile.exit_codes import ExitCode
from sola_profile.machine import Environment
from sola_profile.measure.latency import Latency
from sola_profile.result import MODEL, Contender, Profile, Row

# what decides which operators run, and so what is counted and predicted
COUNTED_WITH = ("torch", "threads")
# what a time depends on besides; the version of sola_vision is what a comparison is about, the load is said elsewhere
TIMED_WITH = (
    *("cpu", "cores", "logical_cores", "operating_system", "python", "cpu_capability"),
    *("gpu", "cuda", "cudnn", "tf32"),
)
OWN_VERSION = "version"


@dataclass(frozen=True)
class Mismatch:
    """Something that differs between two runs and has a say in their figures."""

    name: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.name}: {self.old} then, {self.new} now"


@dataclass(frozen=True)
class Conditions:
    """Under which a run was made. ``timed``: whether it has measured, or will measure, times."""

    model: str
    shape: str
    settings: Settings
    environment: Environment
    timed: bool

    @classmethod
    def of(cls, profile: Profile) -> Conditions:
        """Those of a finished profile."""
        timed = any(row.latency for row in profile.model.rows)
        return cls(profile.model.name, str(profile.shape), profile.settings, profile.environment, timed)


@dataclass(frozen=True)
class Gates:
    """``tolerance``: relative increase of counted figures that is let through. ``limit``: of times; None for no gate."""

    tolerance: float = 0.0
    limit: float | None = None


@dataclass(frozen=True)
class Side:
    """One of the two: ``name`` for the reader, the command that gave it, when, and its version of ``sola_vision``."""

    name: str
    command: str
    started: str
    version: str


@dataclass(frozen=True)
class Comparison:
    """Figures and times of two runs with their verdicts.

    ``interleaved``: whether both sides took turns in one run, so that what else the machine did hit both. ``only_old``,
    ``only_new``: sizes that one side alone has.
    """

    model: str
    old: Side
    new: Side
    gates: Gates
    mismatches: tuple[Mismatch, ...]
    figures: tuple[Figure, ...]
    times: tuple[Time, ...]
    interleaved: bool
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Figure | Time, ...]:
        """What closes a gate."""
        found: tuple[Figure | Time, ...] = (*self.figures, *self.times)
        return tuple(one for one in found if one.verdict.regression)

    @property
    def undecided(self) -> tuple[Time, ...]:
        """Times that a gate asked for and that give no verdict."""
        if self.gates.limit is None:
            return ()
        return tuple(time for time in self.times if time.verdict in (Verdict.UNCLEAR, Verdict.UNMEASURED))

    @property
    def exit_code(self) -> ExitCode:
        """Of a command whose matter is this comparison."""
        if self.regressions:
            return ExitCode.REGRESSION
        return ExitCode.UNSTABLE if self.undecided else ExitCode.FINE


def mismatches(old: Conditions, new: Conditions) -> tuple[Mismatch, ...]:
    """What makes two runs no fair comparison; hardware counts only where both have times."""
    return tuple(Mismatch(name, then, now) for name, then, now in _conditions(old, new) if then != now)


def _conditions(old: Conditions, new: Conditions) -> Iterator[tuple[str, object, object]]:
    yield "model", old.model, new.model
    yield "input", old.shape, new.shape
    settings = asdict(old.settings), asdict(new.settings)
    # threads left to PyTorch are those of the environment
    yield from ((name, value, settings[1][name]) for name, value in settings[0].items() if name != "threads")
    before, now = old.environment, new.environment
    timed = old.timed and new.timed
    for name in (*COUNTED_WITH, *(TIMED_WITH if timed else ())):
        yield name, getattr(before, name), getattr(now, name)
    if timed:
        for name in sorted((before.kernels.keys() | now.kernels.keys()) - {OWN_VERSION}):
            yield f"kernels.{name}", before.kernels.get(name), now.kernels.get(name)


def side(name: str, profile: Profile) -> Side:
    """What a reader should know of a side."""
    return Side(name, profile.command, profile.started, profile.environment.sola_vision)


def compare(
    old: tuple[str, Profile],
    new: tuple[str, Profile],
    gates: Gates,
    turns: dict[str, tuple[Latency, Latency]] | None = None,
) -> Comparison:
    """Set two profiles, each with its name, side by side; the sizes that both have are compared.

    ``turns``: size → latencies of both sides that took turns; they stand for those of the profiles. Raises
    ``ValueError`` when there is no common size.
    """
    then, now = old[1].model, new[1].model
    sizes = _sizes(then), _sizes(now)
    common = [size for size in sizes[0] if size in sizes[1]]
    if not common:
        raise ValueError(f"no size is in both: {', '.join(sizes[0])} in {old[0]}, {', '.join(sizes[1])} in {new[0]}")
    pairs = [(size, sizes[0][size], sizes[1][size]) for size in common]
    sides = [replace(found, timed=found.timed or turns is not None) for found in map(Conditions.of, (old[1], new[1]))]
    figures = [judge("", "parameters", "numbers", _parameters(then, now), gates.tolerance)]
    figures += [found for pair in pairs for found in _figures(*pair, gates.tolerance)]
    times = [_time(size, before, after, gates, turns) for size, before, after in pairs]
    return Comparison(
        model=now.name,
        old=side(*old),
        new=side(*new),
        gates=gates,
        mismatches=mismatches(*sides),
        figures=tuple(found for found in figures if found is not None),
        times=tuple(found for found in times if found is not None),
        interleaved=turns is not None,
        only_old=tuple(size for size in sizes[0] if size not in sizes[1]),
        only_new=tuple(size for size in sizes[1] if size not in sizes[0]),
    )


def _sizes(model: Contender) -> dict[str, Row]:
    assert model.role == MODEL
    return {str(row.resolution): row for row in model.rows}


def _parameters(old: Contender, new: Contender) -> tuple[int, int]:
    return old.rows[0].counted_parameters, new.rows[0].counted_parameters


def _figures(size: str, old: Row, new: Row, tolerance: float) -> Iterator[Figure | None]:
    def sides(name: str, unit: str, then: int | None, now: int | None) -> Figure | None:
        return judge(size, name, unit, (then, now), tolerance)

    yield sides("forward pass", "MACs", old.cost.macs, new.cost.macs)
    yield sides("forward pass, counted", "MACs", _counted(old), _counted(new))
    yield sides("training step", "MACs", old.step_macs, new.step_macs)
    operations = [sum(row.cost.scalar_ops.values()) for row in (old, new)]
    yield sides("scalar operations", "operations", *operations)
    yield sides("bytes moved", "bytes", old.moved_bytes, new.moved_bytes)
    yield sides("peak memory, predicted", "bytes", *(row.predicted_memory.total_bytes for row in (old, new)))


def _counted(row: Row) -> int | None:
    """What the counters saw of the module itself, where ``cost`` may be arithmetic on its spec; the most of them."""
    found = row.agreement
    if found is None:
        return None
    return max((macs for name, macs in found.macs.items() if name not in {found.reference, *found.blind}), default=None)


def _time(size: str, old: Row, new: Row, gates: Gates, turns: dict[str, tuple[Latency, Latency]] | None) -> Time | None:
    if turns is None:
        return judge_time(size, old.latency, new.latency, gates.limit, interleaved=False)
    then, now = turns.get(size, (None, None))
    return judge_time(size, then, now, gates.limit, interleaved=True)
