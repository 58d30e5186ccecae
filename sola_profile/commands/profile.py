"""``sola-profile profile``: cost, measurement and comparison of one model at several image sizes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sola_profile.case import DTYPES, MODES, OPTIMIZERS, Resolution, Settings, parse_resolutions
from sola_profile.commands.gates import Baseline, gate_options, read_baseline
from sola_profile.commands.output import (
    Targets,
    check_device,
    check_positive,
    checked,
    checked_budget,
    report_folder,
    written_command,
)
from sola_profile.errors import first_line, refused_sizes
from sola_profile.exit_codes import ExitCode
from sola_profile.report import FORMATS, render
from sola_profile.report.svg import Renderer
from sola_profile.source import DEFAULT_INPUT, BuildError, InputShape, ModelSource, read_source

if TYPE_CHECKING:
    from sola_profile.result import Profile

BUDGET_S = 80.0
LIMIT_S = 60.0
AUTO = "auto"
RESULT = "result.json"


@dataclass(frozen=True)
class Request:
    """The command line, checked.

    ``budget_s`` is None when nothing shall be measured, ``resolutions`` when they are to be chosen. ``baseline``: an
    earlier result, by the name of its file.
    """

    source: ModelSource
    shape: InputShape | None
    others: tuple[ModelSource, ...]
    with_twins: bool
    limit_s: float
    resolutions: tuple[Resolution, ...] | None
    settings: Settings
    budget_s: float | None
    targets: Targets
    strict: bool
    predict: bool
    isolate: bool
    require_stable: bool
    baseline: Baseline | None


@click.command()
@click.option(
    "-m",
    "--model",
    required=True,
    metavar="NAME",
    help="A preset, timm:NAME, torchvision:NAME or package.module:factory.",
)
@click.option(
    "-r", "--res", default="224,512,1024", show_default=True, metavar="SIZES", help="Pixels: 224 or 512x2048; or auto."
)
@click.option("--pattern", metavar="PATTERN", help="Another layer pattern, such as 'L*2|L*2|(LLS)*2|LS'.")
@click.option("--with", "others", metavar="NAMES", help="Models to set beside it, named like it, with commas between.")
@click.option("--no-twins", is_flag=True, help="Leave out the same backbone all linear and all softmax.")
@click.option("--input", "shape", metavar="SHAPE", help=f"What the model takes.  [default: {DEFAULT_INPUT}]")
@click.option("--limit", default=LIMIT_S, show_default=True, metavar="SECONDS", help="Time to look for polynomials.")
@click.option("--batch", default=1, show_default=True, metavar="N", help="Images per step.")
@click.option("--dtype", default="float32", show_default=True, metavar="DTYPE", help=f"{', '.join(DTYPES)}.")
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cuda or cuda:N.")
@click.option("--threads", type=int, metavar="N", help="Threads of PyTorch's CPU operators.")
@click.option(
    "--mode",
    default="infer",
    show_default=True,
    metavar="MODE",
    help=f"{' or '.join(MODES)}; train is forward and backward.",
)
@click.option(
    "--optimizer", default="none", show_default=True, metavar="NAME", help=f"With train: {', '.join(OPTIMIZERS)}."
)
@click.option("--checkpointing", is_flag=True, help="With train: compute every block again in the backward pass.")
@click.option("--compile", "compiled", is_flag=True, help="Measure the model under torch.compile.")
@click.option("--budget", default=BUDGET_S, show_default=True, metavar="SECONDS", help="Time for all measuring.")
@click.option(
    "--predict", is_flag=True, help="Predict the latency too: by the machine's ceilings, measured if need be."
)
@click.option("--isolate", is_flag=True, help="Measure every size in a new process of its own.")
@click.option("--no-measure", is_flag=True, help="Count and predict only; runs nothing.")
@click.option("--out", metavar="FOLDER", help="Where the report goes.  [default: docs/reports/MODEL]")
@click.option("--no-report", is_flag=True, help="Write no report folder.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything as JSON; - is standard output.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write one line per row as CSV; - is standard output.")
@click.option("--strict", is_flag=True, help="Exit with 2 when witnesses differ or an operator may be uncounted.")
@click.option("--require-stable", is_flag=True, help="Exit with 4 when a latency is unstable or couldn't be had.")
@click.option("--baseline", metavar="FILE", help="An earlier --json; exit with 3 when a figure is worse than there.")
@gate_options
def profile(**options: Any) -> None:
    """Count, predict and measure one model at several image sizes.

    Every size gets its parameters, tokens, MACs and FLOPs from independent witnesses, peak memory predicted
    and measured, latency with its interval, and the share of each kind of layer; then the growth of all that with
    the number of tokens. A preset stands beside itself all linear and all softmax, any model beside those of --with.
    """
    request = read_request(options)
    request.targets.check()
    with Renderer(with_bundle=True) if request.targets.folder else nullcontext() as renderer:
        finished = run(request, renderer)
    if finished.interrupted:
        raise KeyboardInterrupt
    code = outcome(finished, request)
    if request.strict and (complaints := list(objections(finished))):
        click.echo(f"strict: {'; '.join(complaints)}", err=True)
        code = ExitCode.USAGE
    sys.exit(code)


def run(request: Request, renderer: Renderer | None) -> Profile:
    """Sweep as far as it gets and write what is finished, whatever happened."""
    from sola_profile.commands.ceilings import for_profile
    from sola_profile.commands.progress import follow
    from sola_profile.sweep import Plan, Sweep

    sweep = Sweep(
        Plan(
            request.source,
            request.resolutions or choose_sizes(request),
            request.settings,
            request.budget_s,
            written_command(),
            request.shape,
            request.others,
            request.with_twins,
            request.limit_s,
            isolate=request.isolate,
            machine=for_profile(request.settings, measure=request.predict, runs=request.budget_s is not None),
        )
    )
    if request.baseline is not None:
        request.baseline.check(request.source.name, sweep.plan.resolutions, sweep.profile())
    try:
        for _ in follow(sweep.run()):
            if sweep.measuring:
                request.targets.checkpoint(RESULT, lambda: render("json", sweep.profile()))
    except BuildError as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        sweep.interrupted = True
    finally:
        finished = sweep.profile()
        if finished.contenders:
            write(finished, request.targets, renderer)
    if not finished.contenders and not sweep.interrupted:
        raise click.UsageError(refused_sizes(request.source.name, finished.shape, sweep.refused))
    return finished


def choose_sizes(request: Request) -> tuple[Resolution, ...]:
    """``--res auto``: says what was chosen and why there is no more."""
    from sola_profile.auto_sizes import auto_sizes

    try:
        choice = auto_sizes(request.source, request.settings, request.budget_s, request.shape)
    except Exception as error:
        if request.source.spec is not None:
            raise
        raise click.UsageError(
            f"--res auto can't run {request.source.name}: {first_line(error)}; name sizes that it takes"
        ) from error
    click.echo(f"sizes: {','.join(map(str, choice.resolutions))}; {choice.why}", err=True)
    return choice.resolutions


def outcome(finished: Profile, request: Request) -> ExitCode:
    """Compare with the baseline, and say what is wrong with the measurements as a whole."""
    code = ExitCode.FINE
    if request.baseline is not None:
        code = request.baseline.compare(finished, request.targets.console())
    if request.budget_s is None or code is ExitCode.REGRESSION:
        return code
    if finished.model.nothing_fitted:
        click.echo(f"no size of {finished.model.name} fitted in memory", err=True)
        return ExitCode.NOTHING_FITTED
    shaky = [str(row.resolution) for row in finished.model.rows if row.latency is None or row.latency.unstable]
    if request.require_stable and shaky:
        click.echo(f"--require-stable: no stable latency at {', '.join(shaky)}", err=True)
        return ExitCode.UNSTABLE
    return code


def write(finished: Profile, targets: Targets, renderer: Renderer | None) -> None:
    """Everything that was asked for: raw results first, the terminal last, and also where a file can't be written."""
    from sola_profile.report.terminal import print_profile

    console = targets.console()
    try:
        write_files(finished, targets, renderer)
    finally:
        print_profile(finished, console)
    if targets.folder is not None:
        console.print(f"Report: {targets.folder}", highlight=False, soft_wrap=True)


def write_files(finished: Profile, targets: Targets, renderer: Renderer | None) -> None:
    """The raw results and the report."""
    texts = {name: render(name, finished) for name in FORMATS if name in targets.files}
    if targets.folder is not None:
        targets.put(RESULT, texts.get("json") or render("json", finished))
    targets.deliver(texts)
    if targets.folder is not None and renderer is not None:
        from sola_profile.report.folder import write_folder

        problem = write_folder(finished, targets.folder, renderer, [RESULT])
        if problem:
            click.echo(f"the report has no charts: {problem}", err=True)


def read_request(options: dict[str, Any]) -> Request:
    """Check everything that can be checked without running anything; bad use raises ``click.UsageError``."""
    source = checked(lambda: read_source(options["model"], options["pattern"]))
    names = [name.strip() for name in (options["others"] or "").split(",") if name.strip()]
    others = tuple(checked(partial(read_source, name), "--with") for name in names)
    shape = checked(lambda: _read_shape(options["shape"], options["batch"]), "--input")
    checked(lambda: source.check_input(shape), "--input")
    auto = options["res"].strip().lower() == AUTO
    resolutions = None if auto else checked(lambda: parse_resolutions(options["res"]), "--res")
    fields = ("batch", "dtype", "device", "mode", "threads", "optimizer", "checkpointing")
    checked(lambda: check_device(options["device"]), "--device")
    settings = checked(lambda: Settings(**{name: options[name] for name in fields}, compile=options["compiled"]))
    budget_s = checked_budget(options["budget"])
    check_positive(options["limit"], "--limit")
    folder = report_folder(options, Path("docs", "reports", _folder_name(source)))
    files = {name: options[f"{name}_file"] for name in ("json", "csv") if options[f"{name}_file"]}
    for name in ("require_stable", "isolate", "max_regression"):
        if options[name] and options["no_measure"]:
            raise click.UsageError(f"--{name.replace('_', '-')} needs measured times, and --no-measure takes none")
    if options["compiled"] and options["no_measure"]:
        raise click.UsageError("--compile is for the model that is measured, and --no-measure measures none")
    return Request(
        source,
        shape,
        others,
        not options["no_twins"],
        options["limit"],
        resolutions,
        settings,
        None if options["no_measure"] else budget_s,
        Targets(folder, files),
        options["strict"],
        options["predict"],
        options["isolate"],
        options["require_stable"],
        read_baseline(options),
    )


def _read_shape(text: str | None, batch: int) -> InputShape | None:
    """``--input``, whose first number must not contradict ``--batch``."""
    if text is None:
        return None
    shape = InputShape.parse(text)
    if shape.batch not in (1, batch):
        raise ValueError(f"expected 1 or --batch {batch} first, got {text!r}; --batch sets the images per step")
    return shape


def _folder_name(source: ModelSource) -> str:
    """The name of the model, with another pattern behind it: ``sola_t-LL.LL.SSSSSS.LS``, ``timm-resnet18``."""
    return source.name.replace("[", "-").rstrip("]").replace("|", ".").replace(":", "-")


def objections(finished: Profile) -> Iterator[str]:
    """What ``--strict`` holds against a profile."""
    for row in finished.model.rows:
        found = row.agreement
        if found is not None and not found.exact:
            pieces = ", ".join(dict.fromkeys(part.piece for part in found.differences))
            yield f"the witnesses differ at {row.resolution} on {pieces}"
        if row.counted_parameters != row.cost.parameters:
            yield f"{row.counted_parameters:,} parameters counted, {row.cost.parameters:,} expected"
    unknown = sorted({name for row in finished.model.rows if row.agreement for name in row.agreement.unknown})
    if unknown:
        yield f"operators that may hold matrix products are not counted: {', '.join(unknown)}"
