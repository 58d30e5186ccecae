"""Two installed versions side by side: counted by each, and timed in turns, each in processes of its own interpreter.

One process says little of another with the same code: where its memory lies can make some percent of difference. So
both sides are launched anew several times, every launch is one round, and the intervals are over launches. Within a launch
the sides take turns, so that a drift of the machine hits both.
Source: Mytkowicz, Diwan, Hauswirth, Sweeney, Producing Wrong Data Without Doing Anything Obviously Wrong (ASPLOS 2009).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sola_profile.case import Resolution, Settings
from sola_profile.comparison import Comparison, Conditions, Gates, Mismatch, compare, mismatches
from sola_profile.measure.latency import (
    FEWEST_SAMPLES,
    HostTimer,
    Latency,
    Sample,
    WarmUp,
    interleave,
    summarize,
    warm_up,
)
from sola_profile.measuring import Progress
from sola_profile.report.read_json import read_profile
from sola_profile.result import Profile
from sola_profile.workload import Step

OLD, NEW = "old", "new"
# share of a launch's time that each warm-up may take
WARMUP_SHARE = 0.1
# the current folder must not decide whose sola_vision is loaded, as it does for python -c
PRELUDE = "import sys; sys.path[:] = [path for path in sys.path if path not in ('', '.')]\n"
COMMAND = f"{PRELUDE}from sola_profile.cli import main\nmain()"
LINES_OF_ERROR = 5

Key = tuple[str, str]


class VersionError(ValueError):
    """A side that can't be run or compared."""


@dataclass(frozen=True)
class Interpreter:
    """A Python with a ``sola_vision`` of its own. ``root``: where that lies, for the one that runs this."""

    name: str
    python: str
    root: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables of its processes: whatever leads to another side's code is taken out."""
        found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return found if self.root is None else {**found, "PYTHONPATH": str(self.root)}

    def start(self, program: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """A process that runs a program text; raises ``VersionError`` when the interpreter isn't there."""
        try:
            return subprocess.Popen(
                [self.python, "-c", program, *arguments], env=self.environment, text=True, encoding="utf-8", **options
            )
        except OSError as error:
            raise VersionError(f"can't run {self.python}: {error.strerror}") from error


class Worker:
    """A process of one side that times single runs."""

    def __init__(self, interpreter: Interpreter, model: str, threads: int | None) -> None:
        self._name = interpreter.name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  it lives as long as the worker
        program = PRELUDE + Path(__file__).with_name("versions_worker.py").read_text(encoding="utf-8").replace(
            "from __future__ import annotations\n", "", 1
        )
        self._process = interpreter.start(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        self.loaded = str(self._ask({"model": model, "threads": threads})["loaded"])

    def prepare(self, size: str, *, sized: bool, shape: str) -> float:
        """Build the model and run it once; seconds of that run."""
        return float(self._ask({"do": "prepare", "size": size, "sized": sized, "input": shape})["time_s"])

    def run(self, size: str) -> float:
        """Run once; seconds."""
        return float(self._ask({"do": "run", "size": size})["time_s"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            raise VersionError(f"the {self._name} side ended: {_last_lines(self._errors.read()) or 'without a word'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class RemoteStep:
    """One run in a worker's process, which measures it itself."""

    def __init__(self, worker: Worker, size: str) -> None:
        self._worker, self._size = worker, size
        self.taken_s = 0.0

    def __call__(self) -> None:
        self.taken_s = self._worker.run(self._size)


class RemoteTimer(HostTimer):
    """Takes the time that the worker measured, without the way there and back."""

    def time(self, step: Step) -> float:
        """Run the step and return how long it took there."""
        step()
        assert isinstance(step, RemoteStep)
        return step.taken_s


@dataclass
class Versions:
    """Go through ``count()``, then ``race()`` as far as it gets, then ask for the ``comparison()``.

    ``python``: interpreter of the old side; the new one is that which runs this. ``launches``: processes of each side.
    ``budget_s``: for all turns, without launching and warming up.
    """

    model: str
    resolutions: tuple[Resolution, ...]
    settings: Settings
    python: str
    launches: int
    budget_s: float
    profiles: dict[str, Profile] = field(default_factory=dict)
    samples: list[Sample[Key]] = field(default_factory=list)
    warm: dict[Key, WarmUp] = field(default_factory=dict)

    @property
    def interpreters(self) -> tuple[Interpreter, Interpreter]:
        """Old and new."""
        return (Interpreter(OLD, self.python), Interpreter(NEW, sys.executable, Path(__file__).parents[1]))

    def count(self) -> Iterator[Progress]:
        """What each version says of the model without running it."""
        for number, side in enumerate(self.interpreters):
            yield Progress("counting", number, 2, f"{self.model} by the {side.name} side")
            self.profiles[side.name] = self._counted(side)

    @property
    def mismatches(self) -> tuple[Mismatch, ...]:
        """What makes the two no fair comparison; known once both are counted."""
        old, new = (replace(Conditions.of(self.profiles[name]), timed=True) for name in (OLD, NEW))
        return mismatches(old, new)

    def race(self) -> Iterator[Progress]:
        """Time both in turns, launch after launch."""
        for launch in range(self.launches):
            yield Progress("launching", launch, self.launches, f"{launch + 1} of {self.launches}")
            # each goes first in every other launch
            sides = self.interpreters if launch % 2 == 0 else self.interpreters[::-1]
            with ExitStack() as stack:
                workers = {}
                for side in sides:
                    workers[side.name] = Worker(side, self.model, self.settings.threads)
                    stack.callback(workers[side.name].close)
                _check_different(workers)
                yield from self._turns(workers, launch)

    def comparison(self, gates: Gates) -> Comparison:
        """What is finished by now; both sides must be counted."""
        latencies = {
            key: summarize([sample for sample in self.samples if sample.key == key], warm)
            for key, warm in self.warm.items()
            if any(sample.key == key for sample in self.samples)
        }
        sizes = [size for side, size in latencies if side == OLD and (NEW, size) in latencies]
        turns: dict[str, tuple[Latency, Latency]] = {
            size: (latencies[OLD, size], latencies[NEW, size]) for size in sizes
        }
        return compare(
            (self.python, self.profiles[OLD]), ("the interpreter of this command", self.profiles[NEW]), gates, turns
        )

    def _turns(self, workers: dict[str, Worker], launch: int) -> Iterator[Progress]:
        timer, limit_s = RemoteTimer(), self.budget_s / self.launches
        steps: dict[Key, Step] = {}
        warm: dict[Key, WarmUp] = {}
        for row in self.profiles[NEW].model.rows:
            size = str(row.resolution)
            for name, worker in workers.items():
                yield Progress("preparing", launch, self.launches, f"{size}, {name} side")
                first_s = worker.prepare(size, sized=row.case.sized, shape=str(row.case.shape))
                steps[name, size] = RemoteStep(worker, size)
                warm[name, size] = warm_up(steps[name, size], timer, WARMUP_SHARE * limit_s, first_s)
        self.warm.update(warm)
        start = timer.now()
        for sample in interleave(steps, warm, timer, start + limit_s, _go_up, _enough):
            self.samples.append(replace(sample, round=launch))
            yield Progress("measuring", timer.now() - start, limit_s, f"launch {launch + 1} of {self.launches}")

    def _counted(self, side: Interpreter) -> Profile:
        threads = [] if self.settings.threads is None else ["--threads", str(self.settings.threads)]
        sizes = ",".join(map(str, self.resolutions))
        options = ["--model", self.model, "--res", sizes, *threads, "--no-measure", "--no-report", "--json", "-"]
        process = side.start(COMMAND, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        text, errors = process.communicate()
        if process.returncode:
            raise VersionError(f"the {side.name} side can't count {self.model}: {_last_lines(errors)}")
        try:
            return read_profile(text, f"the {side.name} side's result")
        except ValueError as error:
            raise VersionError(str(error)) from error


def _check_different(workers: dict[str, Worker]) -> None:
    if workers[OLD].loaded == workers[NEW].loaded:
        raise VersionError(
            f"both interpreters load the same sola_vision, {workers[NEW].loaded}: there is nothing to compare"
        )


def _last_lines(text: str) -> str:
    return " / ".join(line.strip() for line in text.strip().splitlines()[-LINES_OF_ERROR:])


def _go_up(key: Key, error: BaseException) -> bool:
    del key, error
    return False


def _enough(samples: Sequence[Sample[Key]]) -> bool:
    return len(samples) >= FEWEST_SAMPLES
