"""``sola-profile place``: which layers should be softmax."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sola_profile.case import DTYPES, Resolution, Settings, nearest
from sola_profile.commands.formula import parse_bytes
from sola_profile.commands.machine import find
from sola_profile.commands.output import (
    Targets,
    check_device,
    check_positive,
    checked,
    checked_budget,
    written_command,
)
from sola_profile.report.svg import Renderer
from sola_profile.study.subject import read_subject

if TYPE_CHECKING:
    from sola_profile.hardware import Machine
    from sola_profile.study.placement import Budgets, Placement, Question
    from sola_profile.study.placing import Placing

BUDGET_S = 40.0
THIS = "this"
SCORES = ("run", "horizon", "accuracy", "erf")
COSTS = {"latency": "latency_ns", "macs": "macs"}


@click.command()
@click.option(
    "-m", "--model", required=True, metavar="NAME", help="A preset such as sola_t, or package.module:factory."
)
@click.option("-r", "--res", default="224", show_default=True, metavar="SIZE", help="Pixels: 224 or 512x2048.")
@click.option("--pattern", metavar="PATTERN", help="The pattern to compare with, instead of the model's.")
@click.option("--batch", default=1, show_default=True, metavar="N", help="Images per step.")
@click.option("--dtype", default="float32", show_default=True, metavar="DTYPE", help=f"{', '.join(DTYPES)}.")
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cuda or cuda:N.")
@click.option("--threads", type=int, metavar="N", help="Threads of PyTorch's CPU operators.")
@click.option("--score", default="run", show_default=True, metavar="NAME", help=f"Of reach: {', '.join(SCORES)}.")
@click.option("--table", metavar="FILE", help="CSV with pattern,accuracy for --score accuracy.  [default: the paper's]")
@click.option("--decay-per", metavar="WHAT", help="For --score horizon: sequence or token, instead of the model's own.")
@click.option("--cost", metavar="NAME", help=f"Of the front: {', '.join(COSTS)}.  [default: latency where measured]")
@click.option("--stages", default="1,2,3,4", show_default=True, metavar="LIST", help="Stages whose layers are free.")
@click.option("--softmax", type=int, metavar="K", help="At most so many softmax layers.")
@click.option("--max-latency", metavar="TIME", help="At most so long, such as 50ms.")
@click.option("--max-gmacs", type=float, metavar="N", help="At most so many 10⁹ multiply-accumulates of the batch.")
@click.option("--max-memory", metavar="SIZE", help="At most so much predicted peak memory, such as 2GiB.")
@click.option("--swap", "swaps", multiple=True, metavar="CHANGE", help="Show one layer changed: 3.4=S. Repeatable.")
@click.option("--budget", default=BUDGET_S, show_default=True, metavar="SECONDS", help="Time for all measuring.")
@click.option("--machine", metavar="NAME", help="Predict times for it instead of measuring: this, h200, a file.")
@click.option("--no-measure", is_flag=True, help="The analytical answer alone: MACs as the cost.")
@click.option("--out", metavar="FOLDER", help="Write a page with its chart there.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything as JSON; - is standard output.")
def place(**options: Any) -> None:
    """Find which layers should be softmax: the exact front of cost and reach over all patterns.

    A layer of every kind is timed on this machine, every pattern's cost is the sum over its layers, and no pattern that
    could be on the front is passed over. Whole models at the corners of the front are measured to confirm it.
    """
    question = read_question(options)
    files = {"json": options["json_file"]} if options["json_file"] else {}
    targets = Targets(Path(options["out"]) if options["out"] else None, files)
    placing = checked(lambda: _prepared(question))
    targets.check()
    with Renderer() if targets.folder else nullcontext() as renderer:
        placement = run(placing)
        write(placement, targets, renderer)
    if placement.interrupted:
        raise KeyboardInterrupt


def read_question(options: dict[str, Any]) -> Question:
    """Check the command line; bad use raises ``click.UsageError``."""
    subject = checked(lambda: read_subject(options["model"], options["pattern"]))
    checked(lambda: check_device(options["device"]), "--device")
    settings = checked(
        lambda: Settings(options["batch"], options["dtype"], options["device"], threads=options["threads"])
    )
    resolution = checked(lambda: Resolution.parse(options["res"]), "--res")
    _one_of(options, "score", SCORES)
    _one_of(options, "cost", COSTS)
    _one_of(options, "decay_per", ("sequence", "token"))
    for name, score in (("table", "accuracy"), ("decay_per", "horizon")):
        if options[name] and options["score"] != score:
            raise click.UsageError(f"--{name.replace('_', '-')} belongs to --score {score}, got {options['score']}")
    if options["no_measure"] and not options["machine"] and (options["max_latency"] or options["cost"] == "latency"):
        raise click.UsageError(
            "latency is measured or not known: --no-measure excludes --max-latency and --cost latency"
        )
    stages = checked(lambda: parse_stages(options["stages"]), "--stages")
    budgets = read_budgets(options)
    measured_s = None if options["no_measure"] or options["machine"] else checked_budget(options["budget"])
    from sola_profile.study.placement import Question

    return Question(
        spec=subject.base,
        resolution=resolution,
        settings=settings,
        pattern=subject.spec.pattern,
        score=options["score"],
        budgets=budgets,
        stages=stages,
        swaps=options["swaps"],
        table=Path(options["table"]) if options["table"] else None,
        decay_per=options["decay_per"],
        budget_s=measured_s,
        machine=find_machine(options["machine"], settings),
        cost=COSTS[options["cost"]] if options["cost"] else None,
        command=written_command(),
        source=subject.source,
    )


def find_machine(name: str | None, settings: Settings) -> Machine | None:
    """The machine to predict for; this one is measured where no ceilings of it are kept."""
    if name is None:
        return None
    if name != THIS:
        return find(name, settings.dtype)
    import torch

    from sola_profile.commands.ceilings import this_machine
    from sola_profile.machine_measuring import Wanted

    return this_machine(Wanted("cpu", settings.dtype, settings.threads or torch.get_num_threads()))


def _one_of(options: dict[str, Any], name: str, known: Any) -> None:
    value = options[name]
    if value is not None and value not in known:
        hint = nearest(value, list(known))
        message = f"expected one of {', '.join(known)}, got {value!r}{hint}"
        raise click.BadParameter(message, param_hint=f"--{name.replace('_', '-')}")


def read_budgets(options: dict[str, Any]) -> Budgets:
    """The four limits; importing what holds them loads torch, so that comes last."""
    latency, memory, gmacs = options["max_latency"], options["max_memory"], options["max_gmacs"]
    latency_s = None if latency is None else checked(lambda: parse_seconds(latency), "--max-latency")
    memory_bytes = None if memory is None else checked(lambda: parse_bytes(memory), "--max-memory")
    if gmacs is not None:
        check_positive(gmacs, "--max-gmacs")
    from sola_profile.study.placement import Budgets

    macs = None if gmacs is None else int(gmacs * 1e9)
    return checked(lambda: Budgets(options["softmax"], latency_s, macs, memory_bytes))


_SECONDS = re.compile(r"([0-9.]+)\s*(us|ms|s)", re.IGNORECASE)


def parse_seconds(text: str) -> float:
    """Read ``50ms``, ``1.5s`` or ``800us``; raises ``ValueError``."""
    match = _SECONDS.fullmatch(text.strip())
    try:
        value = float(match[1]) if match else 0.0
    except ValueError:
        value = 0.0
    if match is None or value <= 0:
        raise ValueError(f"expected a time such as 50ms or 1.5s, got {text!r}")
    return value * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2].lower()]


def parse_stages(text: str) -> tuple[int, ...]:
    """Read ``3,4``; raises ``ValueError``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part in ("1", "2", "3", "4") for part in parts):
        raise ValueError(f"expected stages from 1 to 4 such as 3,4, got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def _prepared(question: Question) -> Placing:
    from sola_profile.study.placing import Placing

    try:
        return Placing(question)
    except OSError as error:
        raise ValueError(f"table: can't read {question.table}: {error.strerror}") from error


def run(placing: Placing) -> Placement:
    """Go through the work; what was found before an interruption is kept."""
    said = ""
    try:
        for step in placing.run():
            # rounds of one phase are one line
            phase = step.partition(", round")[0]
            if phase != said:
                click.echo(phase, err=True)
            said = phase
    except KeyboardInterrupt:
        click.echo("interrupted: what follows is what was known by then", err=True)
        placing.finish()
    return placing.result()


def write(placement: Placement, targets: Targets, renderer: Renderer | None) -> None:
    """Files first, the terminal last, and also where a file can't be written."""
    from sola_profile.report.placement import print_placement
    from sola_profile.report.placement_folder import write_placement
    from sola_profile.report.placement_json import placement_json

    try:
        if targets.folder is not None and renderer is not None:
            problem = write_placement(placement, targets.folder, renderer)
            if problem:
                click.echo(f"no chart: {problem}", err=True)
        targets.deliver({name: placement_json(placement) for name in targets.files})
    finally:
        print_placement(placement, targets.console())
