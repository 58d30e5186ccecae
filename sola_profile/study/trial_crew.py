"""Training runs in processes of their own, one thread each: one more process is one more run at a time.

A run that fails, or whose process is killed, costs itself alone.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

from sola_profile.study.trial import Outcome, Trial


@dataclass(frozen=True)
class Failure:
    """A run without a result; ``why``: a traceback, or how its process ended."""

    trial: Trial
    why: str


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    trial: Trial


class Crew:
    """``jobs`` processes that share the trials; a context, at whose end none of them is left.

    ``train``: a function of a module; ``train_trial`` when it isn't given.
    """

    def __init__(self, jobs: int, train: Callable[[Trial], Outcome] | None = None) -> None:
        self._jobs = jobs
        # looked up by its name in the other process
        self._train = train or train_trial
        self._workers: list[_Worker] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.terminate()
            worker.process.join()
            worker.connection.close()

    def run(self, trials: Iterable[Trial]) -> Iterator[Outcome | Failure]:
        """The ends of the trials as they come; ``trials`` is asked for the next one when a process is free."""
        waiting = iter(trials)
        for trial in waiting:
            self._workers.append(self._start(trial))
            if len(self._workers) == self._jobs:
                break
        while self._workers:
            ready = wait([worker.connection for worker in self._workers])
            for worker in [each for each in self._workers if each.connection in ready]:
                end = _end(worker)
                following = next(waiting, None)
                self._next(worker, following)
                yield end

    def _next(self, worker: _Worker, trial: Trial | None) -> None:
        """Give a worker its next trial, or send it home; a dead one is replaced."""
        alive = worker.process.exitcode is None
        if trial is not None and alive:
            worker.trial = trial
            worker.connection.send(trial)
            return
        self._workers.remove(worker)
        worker.process.terminate()
        worker.process.join()
        worker.connection.close()
        if trial is not None:
            self._workers.append(self._start(trial))

    def _start(self, trial: Trial) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._train), daemon=True)
        process.start()
        # only the process holds its end now, so that its death ends the pipe
        theirs.close()
        ours.send(trial)
        return _Worker(process, ours, trial)


def _end(worker: _Worker) -> Outcome | Failure:
    try:
        return cast("Outcome | Failure", worker.connection.recv())
    except (EOFError, ConnectionResetError):
        worker.process.join()
        return Failure(worker.trial, f"its process ended with exit status {worker.process.exitcode}")


def work(connection: Connection, train: Callable[[Trial], Outcome]) -> None:
    """What a process does: train what it is sent, and send back how that ended."""
    # Ctrl-C is for the process that was started by hand, which ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    # one thread: the same bits on every machine with the same instruction set, and no waiting for others
    torch.set_num_threads(1)
    while True:
        try:
            trial = connection.recv()
        except EOFError:
            return
        try:
            connection.send(train(trial))
        except Exception:
            connection.send(Failure(trial, traceback.format_exc()))


def train_trial(trial: Trial) -> Outcome:
    """Train in this process."""
    import torch

    from sola_vision.train import train
    from sola_vision.version import __version__

    config = config_of(trial)
    result = train(config)
    return Outcome(
        trial,
        result.correct,
        result.total,
        result.loss,
        result.train_seconds,
        fingerprint(config),
        __version__,
        torch.__version__,
    )


def config_of(trial: Trial) -> Any:
    """The settings of a trial; raises ``ValueError`` for a task, mixer or pattern that there isn't."""
    from sola_vision.train import proxy_config

    return proxy_config(trial.task, trial.pattern, trial.mixer, trial.seed)


def chance(task: str) -> float:
    """Accuracy of a guess at a task, whose answers are equally frequent."""
    from sola_vision.train.config import TASK
    from sola_vision.train.proxy import PROXY_MIXERS
    from sola_vision.train.tasks import read_task

    config = config_of(Trial(PROXY_MIXERS[0], task, "LLLLLL", 0))
    return 1 / read_task(str(config.data).removeprefix(TASK), config.size).classes


def fingerprint(config: object) -> str:
    """Twelve hexadecimal digits of a frozen dataclass: two runs with the same are repetitions of each other.

    What is at its default doesn't count, so that a new setting leaves earlier runs what they are.
    """
    return hashlib.sha256(repr(_chosen(config)).encode()).hexdigest()[:12]


def _chosen(value: object) -> object:
    """Fields that aren't at their defaults, by name, all the way down."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    pairs = [(field.name, getattr(value, field.name)) for field in fields(value) if _differs(value, field)]
    return sorted((name, _chosen(found)) for name, found in pairs)


def _differs(value: object, field: Field[Any]) -> bool:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return bool(getattr(value, field.name) != default)
