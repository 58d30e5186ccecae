"""``sola-profile predict``: how long a model's forward pass takes on a machine, without running it there."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sola_profile.case import Resolution, nearest, parse_resolutions
from sola_profile.commands.machine import check_dtype, find, read_threads
from sola_profile.commands.output import Targets, checked, checked_budget, report_folder, written_command
from sola_profile.source import BuildError, InputShape, ModelSource, read_source

if TYPE_CHECKING:
    from sola_profile.hardware import Machine
    from sola_profile.time_result import TimeResult

THIS = "this"
GROUPS = ("kind", "module", "operator")
REPORT = Path("docs/reports/time")
RESULT = "time.json"
BUDGET_S = 60.0

# predictions are judged by these: ours, the same all linear and all softmax, and four kinds of models that are not ours
JUDGED = (
    *("sola_t", "sola_t[all L]", "sola_t[all S]", "sola_s", "sola_s[all L]", "sola_s[all S]"),
    *("timm:resnet18", "timm:deit_tiny_patch16_224", "timm:pvt_v2_b0", "timm:convnext_atto"),
)
JUDGED_SIZES = "224,384,512,768,1024"


@dataclass(frozen=True)
class Request:
    """The command line, checked."""

    sources: tuple[ModelSource, ...]
    shape: InputShape | None
    batch: int | None
    resolutions: tuple[Resolution, ...]
    machine: str
    dtype: str
    threads: int | None
    budget_s: float
    targets: Targets


@click.command()
@click.option("-m", "--model", metavar="NAMES", help="Presets, timm:NAME, torchvision:NAME or package.module:factory.")
@click.option("-r", "--res", metavar="SIZES", help="Sizes in pixels, such as 224,512x2048; 224,512,1024 unless given.")
@click.option(
    "--machine", default=THIS, show_default=True, metavar="NAME", help="this, a name of machine --list, a file."
)
@click.option("--input", "shape", metavar="SHAPE", help="What the models take, 1x3xHxW for most.")
@click.option("--batch", type=int, metavar="IMAGES", help="Images per step.")
@click.option("--dtype", default="float32", show_default=True, metavar="DTYPE", help="Of weights and input.")
@click.option("--threads", metavar="NUMBER", help="Threads of PyTorch's CPU operators; all cores unless given.")
@click.option("--measure", is_flag=True, help="Measure here as well, and say how far off the prediction is.")
@click.option("--budget", default=BUDGET_S, show_default=True, metavar="SECONDS", help="Time to measure each model.")
@click.option(
    "--by", default="kind", show_default=True, metavar="WHAT", help=f"Break times down by {', '.join(GROUPS)}."
)
@click.option("--depth", default=2, show_default=True, metavar="N", help="Parts of a module's path, with --by module.")
@click.option("--no-bounds", is_flag=True, help="Don't look at what bounds each kind as images grow.")
@click.option(
    "--accuracy", is_flag=True, help=f"Judge predictions: measure ten models at {JUDGED_SIZES}, write a report."
)
@click.option("--out", metavar="FOLDER", help=f"Write the report here; with --accuracy {REPORT} unless given.")
@click.option("--no-report", is_flag=True, help="Write no report.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything as JSON; - is standard output.")
def predict(**options: Any) -> None:
    """Predict how long forward passes take on this machine, on one of data sheets, or on one measured elsewhere.

    Every operator call gets the longer of its work and its traffic at the machine's ceilings, and the cost of a call.
    Nothing is fitted on models, and nothing is run here unless --measure or --accuracy asks for it.
    """
    request = read_request(options)
    request.targets.check()
    result = run(request, options)
    if not any(model.rows for model in result.models):
        failed = [(model.name, *each) for model in result.models for each in model.failed.items()]
        why = "; ".join(f"{name} at {size}: {reason}" for name, size, reason in failed)
        raise click.UsageError(f"no size could be predicted: {why}")
    if options["accuracy"] and not options["model"] and not result.interrupted:
        keep_deviations(result)
    show(result, request.targets, options)


def keep_deviations(result: TimeResult) -> None:
    """For the intervals of later predictions on this machine, unless its ceilings may be anything."""
    if result.machine.crowded:
        click.echo("not kept for later predictions: the ceilings were measured on a crowded machine", err=True)
        return
    from sola_profile.deviation_store import keep
    from sola_profile.time_result import deviations_of

    try:
        path = keep(deviations_of(result))
    except OSError as error:
        click.echo(f"not kept for later predictions: {error.filename}: {error.strerror}", err=True)
    else:
        click.echo(f"kept for the intervals of later predictions: {path}", err=True)


def read_request(options: dict[str, Any]) -> Request:
    """Check everything that can be checked without looking at the models; bad use raises ``click.UsageError``."""
    if not options["model"] and not options["accuracy"]:
        raise click.UsageError("--model is missing; or --accuracy for a list of models")
    names = JUDGED if not options["model"] else re.split(r",(?![^\[]*\])", options["model"])
    sources = checked(lambda: tuple(read_model(name.strip()) for name in names))
    sizes = options["res"] or (JUDGED_SIZES if options["accuracy"] else "224,512,1024")
    resolutions = checked(lambda: parse_resolutions(sizes), "--res")
    shape = checked(lambda: InputShape.parse(options["shape"]), "--input") if options["shape"] else None
    if options["batch"] is not None and options["batch"] < 1:
        raise click.BadParameter(f"expected at least 1 image, got {options['batch']}", param_hint="--batch")
    check_dtype(options["dtype"])
    if options["by"] not in GROUPS:
        message = f"expected one of {', '.join(GROUPS)}, got {options['by']!r}{nearest(options['by'], GROUPS)}"
        raise click.BadParameter(message, param_hint="--by")
    if options["depth"] < 1:
        raise click.BadParameter(f"expected at least 1, got {options['depth']}", param_hint="--depth")
    measure = options["measure"] or options["accuracy"]
    if measure and options["machine"] != THIS:
        raise click.UsageError(f"--measure runs on this machine, and --machine {options['machine']} is another")
    folder = report_folder(options, REPORT if options["accuracy"] else None)
    files = {"json": options["json_file"]} if options["json_file"] else {}
    budget_s = checked_budget(options["budget"]) if measure else 0.0
    threads = read_threads(options["threads"])
    targets = Targets(folder, files)
    return Request(
        sources, shape, options["batch"], resolutions, options["machine"], options["dtype"], threads, budget_s, targets
    )


def read_model(text: str) -> ModelSource:
    """A model as ``formula`` reads it, under the name that was given: ``sola_t[all L]`` stays that."""
    return replace(read_source(text), name=text)


def run(request: Request, options: dict[str, Any]) -> TimeResult:
    """Find the machine, predict and measure; what was found before an interruption is kept."""
    from sola_profile.time_sweep import TimePlan, TimeSweep

    machine = find_this_or(request)
    plan = TimePlan(
        request.sources,
        request.resolutions,
        machine,
        request.shape,
        request.batch,
        request.budget_s,
        options["depth"],
        bounds=not (options["no_bounds"] or options["accuracy"]),
        judged=options["accuracy"],
        command=written_command(),
    )
    sweep = checked(lambda: TimeSweep(plan))
    try:
        for step in sweep.run():
            click.echo(step, err=True)
            request.targets.checkpoint(RESULT, lambda: _json(sweep.result(), calls=False))
    except BuildError as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        if not any(model.rows for model in sweep.result().models):
            raise
        sweep.interrupt()
    return sweep.result()


def find_this_or(request: Request) -> Machine:
    """The machine to predict for; this one is measured where no ceilings of it are kept."""
    if request.machine != THIS:
        return find(request.machine, request.dtype)
    import torch

    from sola_profile.commands.ceilings import this_machine
    from sola_profile.machine_measuring import Wanted

    return this_machine(Wanted("cpu", request.dtype, request.threads or torch.get_num_threads()))


def _json(result: TimeResult, *, calls: bool) -> str:
    from sola_profile.report.time_json import json_text

    return json_text(result, calls=calls)


def show(result: TimeResult, targets: Targets, options: dict[str, Any]) -> None:
    """JSON and report where they were asked for; tables on the terminal, also where a file can't be written."""
    from sola_profile.report.time_markdown import PAGE, page_text
    from sola_profile.report.time_terminal import print_times

    try:
        if targets.files:
            targets.deliver({"json": _json(result, calls=True)})
        if targets.folder is not None:
            targets.put(RESULT, _json(result, calls=False))
            targets.put(PAGE, page_text(result, [RESULT]))
    finally:
        print_times(result, targets.console(), options["by"])
