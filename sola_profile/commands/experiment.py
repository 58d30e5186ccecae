"""``sola-profile experiment``: train patterns from several seeds and say which differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sola_profile.case import nearest
from sola_profile.commands.output import Targets, checked, checked_budget, written_command
from sola_profile.exit_codes import ExitCode
from sola_profile.report.svg import Renderer
from sola_profile.study.trial import Trial, paper_accuracies, plan

if TYPE_CHECKING:
    from sola_profile.machine import Environment
    from sola_profile.study.trial_crew import Failure
    from sola_profile.study.trial_log import TrialLog

FOLDER = Path("docs/reports/experiment")
RUNS = "runs.csv"
PAPER = "paper"
SEEDS = 5


@dataclass(frozen=True)
class Request:
    """What was asked for. ``budget_s``: no run begins after so long; None without a limit."""

    trials: tuple[Trial, ...]
    patterns: tuple[str, ...]
    jobs: int
    budget_s: float | None
    train: bool


@click.command()
@click.option("--task", default="match,count,texture", show_default=True, metavar="LIST", help="Generated tasks.")
@click.option(
    "--mixer", default="wkv", show_default=True, metavar="LIST", help="What L stands for: wkv, linear, decay."
)
@click.option(
    "--pattern",
    default=PAPER,
    show_default=True,
    metavar="LIST",
    help="Of stage 3, six letters each; or the paper's ten.",
)
@click.option("--seeds", default=SEEDS, show_default=True, metavar="N", help="Runs of every pattern.")
@click.option("--jobs", type=int, metavar="N", help="Runs at a time, one thread each.  [default: one per core]")
@click.option(
    "--budget", type=float, metavar="SECONDS", help="Begin no run after so long; what is left waits for the next call."
)
@click.option(
    "--out", default=str(FOLDER), show_default=True, metavar="FOLDER", help="Of the page and its raw results."
)
@click.option("--report-only", is_flag=True, help="Train nothing; write the page of the runs that are there.")
def experiment(
    task: str, mixer: str, pattern: str, seeds: int, jobs: int | None, budget: float | None, out: str, report_only: bool
) -> None:
    """Train the stage-3 patterns of a small backbone on generated tasks, seed by seed, and compare them.

    Every finished run is a line of FOLDER/runs.csv; called again, the command goes on where the file ends. A second
    process that would train into the same folder is refused; --report-only reads beside the first.
    """
    if seeds < 1:
        raise click.BadParameter(f"expected at least 1, got {seeds}", param_hint="--seeds")
    if budget is not None:
        checked_budget(budget)
    patterns = checked(lambda: read_patterns(pattern), "--pattern")
    trials = tuple(plan(_names(task), _names(mixer), patterns, seeds))
    request = Request(trials, patterns, checked(lambda: read_jobs(jobs), "--jobs"), budget, not report_only)
    run(request, Path(out))


def read_patterns(text: str) -> tuple[str, ...]:
    """Read ``LLLLLL,LLSLLS`` or ``paper``; raises ``ValueError``."""
    known = tuple(paper_accuracies())
    names = known if text == PAPER else _names(text)
    for name in names:
        if len(name) != len(known[0]) or set(name) - {"L", "S"}:
            raise ValueError(
                f"expected {len(known[0])} letters L or S such as {known[-1]}, got {name!r}{nearest(name, [*known, PAPER])}"
            )
    return names


def read_jobs(jobs: int | None) -> int:
    """A number of processes: at least 1; one per core where it isn't given."""
    if jobs is not None and jobs < 1:
        raise ValueError(f"expected at least 1, got {jobs}")
    if jobs is not None:
        return jobs
    import psutil

    return int(psutil.cpu_count(logical=False) or 1)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def run(request: Request, folder: Path) -> None:
    """Train what is missing, then write the page; a Ctrl-C writes the page of what is finished."""
    from sola_profile.study.trial_crew import config_of, fingerprint
    from sola_vision.train.lock import only_writer

    settings = checked(lambda: [(trial, fingerprint(config_of(trial))) for trial in request.trials])
    Targets(folder, {}).check()
    with ExitStack() as stack:
        if request.train:
            checked(lambda: stack.enter_context(only_writer(folder)))
        _run(request, folder, settings)


def _run(request: Request, folder: Path, settings: Sequence[tuple[Trial, str]]) -> None:
    from sola_profile.machine import environment
    from sola_profile.study.trial_log import TrialLog

    log = checked(lambda: TrialLog(folder / RUNS))
    checked(lambda: log.check_settings(settings))
    before = environment()
    failures: list[Failure] = []
    interrupted = False
    with Renderer() as renderer:
        try:
            if request.train:
                failures = train(request, log)
        except KeyboardInterrupt:
            interrupted = True
            click.echo("interrupted: every finished run is kept", err=True)
        write(request, log, folder, renderer, before)
    for failure in failures:
        click.echo(f"failed: {failure.trial}: {failure.why.strip()}", err=True)
    if interrupted:
        raise KeyboardInterrupt
    if failures:
        raise click.exceptions.Exit(ExitCode.INTERNAL)


def train(request: Request, log: TrialLog) -> list[Failure]:
    """Train the runs that the log hasn't, several at a time; returns those that failed."""
    from sola_profile.study.trial_crew import Crew, Failure

    waiting = [trial for trial in request.trials if trial not in log.outcomes]
    failures: list[Failure] = []
    click.echo(f"{len(waiting)} of {len(request.trials)} runs to train, {request.jobs} at a time", err=True)
    with Crew(request.jobs) as crew, progress(len(waiting)) as advance:
        for end in crew.run(within(waiting, request.budget_s)):
            if isinstance(end, Failure):
                failures.append(end)
                advance(f"{end.trial}: failed")
            else:
                log.add(end)
                advance(f"{end.trial}: {100 * end.accuracy:.2f} % after {end.train_s:.1f} s")
    return failures


def within(trials: Sequence[Trial], budget_s: float | None) -> Iterator[Trial]:
    """The trials one by one until the time is over."""
    began = time.monotonic()
    for trial in trials:
        if budget_s is not None and time.monotonic() - began > budget_s:
            click.echo(f"the {budget_s:g} s are over; call again for the rest", err=True)
            return
        yield trial


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, a line per run elsewhere, on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda line: console.print(line, soft_wrap=True, markup=False)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("training", total=total)
        yield lambda line: bars.update(task, advance=1, description=line)


def write(request: Request, log: TrialLog, folder: Path, renderer: Renderer, environment: Environment) -> None:
    """The page, then the terminal."""
    from sola_profile.report.experiment import print_experiment
    from sola_profile.report.experiment_folder import write_experiment
    from sola_profile.study.experiment import Experiment, contests
    from sola_profile.study.trial_crew import chance

    outcomes = tuple(log.outcomes[trial] for trial in request.trials if trial in log.outcomes)
    missing = tuple(trial for trial in request.trials if trial not in log.outcomes)
    chances = {trial.task: chance(trial.task) for trial in request.trials}
    found = contests(outcomes, request.patterns, chances)
    result = Experiment(found, outcomes, len(request.trials), missing, written_command(), environment)
    problem = write_experiment(result, folder, renderer)
    if problem:
        click.echo(f"no chart: {problem}", err=True)
    print_experiment(result, Targets(folder, {}).console())
