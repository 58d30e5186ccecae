"""``sola-profile kernels``: the compiled operators beside what PyTorch offers, in one process, in turn."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sola_profile.case import Resolution, parse_resolutions, read_spec
from sola_profile.commands.output import Targets, checked, checked_budget, report_folder, written_command
from sola_profile.kernel_case import (
    DEFAULT_DTYPES,
    KERNEL_MODES,
    KERNELS,
    QUICK_SHAPES,
    WITHOUT_HEADS,
    Choice,
    parse_dtypes,
    parse_names,
    parse_shapes,
    parse_threads,
    takes,
)
from sola_profile.report.svg import Renderer
from sola_vision.spec import BackboneSpec

if TYPE_CHECKING:
    from sola_profile.kernel_result import KernelReport

NAME = "kernels-cpu"
RESULT = f"{NAME}.json"
MODELS = ("sola_t", "sola_s", "sola_b")
NO_MODEL = "none"


@dataclass(frozen=True)
class Effort:
    """How much a run spends. ``rounds``: at most; ``ceiling_s``: on every ceiling of the machine."""

    rounds: int
    budget_s: float
    ceiling_s: float


FULL = Effort(rounds=15, budget_s=1800.0, ceiling_s=1.0)
QUICK = Effort(rounds=8, budget_s=40.0, ceiling_s=0.2)


@dataclass(frozen=True)
class Request:
    """The command line, checked. ``compiled``: with torch.compile; ``crossover``: look for crossovers."""

    choice: Choice
    effort: Effort
    compiled: bool
    crossover: bool
    models: tuple[BackboneSpec, ...]
    resolutions: tuple[Resolution, ...]
    targets: Targets


@click.command()
@click.option(
    "--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, or cuda: its own list of targets."
)
@click.option("--plan", metavar="GPU", help="With --device cuda: write the targets, measure nothing.")
@click.option("--op", "ops", multiple=True, metavar="NAMES", help=f"{', '.join(KERNELS)}; all unless given.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="SHAPES",
    help=f"BxHxNxD such as 1x6x4096x64; {', '.join(WITHOUT_HEADS)}: BxNxC.",
)
@click.option("--dtype", "dtypes", multiple=True, metavar="DTYPES", help=f"[default: {','.join(DEFAULT_DTYPES)}]")
@click.option(
    "--mode", "modes", multiple=True, metavar="MODES", help=f"{' or '.join(KERNEL_MODES)}; both unless given."
)
@click.option("--threads", metavar="NUMBERS", help="Such as 1,all.  [default: 1,all; quick: 1]")
@click.option("--crossover/--no-crossover", default=None, help="Look for the N where linear overtakes softmax.")
@click.option("--model", "models", multiple=True, metavar="NAMES", help=f"Whole models, or {NO_MODEL}.")
@click.option("-r", "--res", default="512,1024", show_default=True, metavar="SIZES", help="Pixels of their images.")
@click.option("--quick", is_flag=True, help="One shape per operator, few samples, nothing compiled: under a minute.")
@click.option("--budget", type=float, metavar="SECONDS", help="Time for all measuring.  [default: 1800; quick: 40]")
@click.option("--no-compile", is_flag=True, help="Leave out torch.compile, which takes long to start.")
@click.option("--out", metavar="FOLDER", help=f"Where {NAME}.md goes.  [default: docs/reports; quick: nowhere]")
@click.option("--no-report", is_flag=True, help="Write no report.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything as JSON; - is standard output.")
def kernels(**options: Any) -> None:
    """Compare the compiled operators with what PyTorch offers, on this machine's CPU or GPU.

    The ceilings of the machine come first; then all routes of a case take turns on the same inputs. Ratios are times
    of a peer over ours, errors are against float64. Crossovers and the models sola_t, sola_s and sola_b follow; a run
    that --quick, --op or --shape narrows has them when asked for.
    """
    if options["device"] != "cpu":
        measure_cuda(options)
        return
    if options["plan"]:
        raise click.UsageError("--plan belongs to --device cuda")
    request = read_request(options)
    request.targets.check()
    with Renderer() if request.targets.folder else nullcontext() as renderer:
        finished = run(request, renderer)
    if finished.interrupted:
        raise KeyboardInterrupt


def measure_cuda(options: dict[str, Any]) -> None:
    """The targets of the CUDA kernels; what narrows a run on the CPU is refused rather than ignored."""
    from sola_profile.commands import kernels_cuda

    if options["device"] != "cuda":
        raise click.BadParameter(f"expected cpu or cuda, got {options['device']!r}", param_hint="--device")
    others = ("ops", "shapes", "dtypes", "modes", "threads", "models", "quick", "budget", "no_report", "json_file")
    given = [name for name in others if options[name]]
    if given:
        raise click.UsageError(f"--device cuda measures a fixed list, --out and --plan aside; got {', '.join(given)}")
    kernels_cuda.run(Path(options["out"] or Path("docs", "reports")), options["plan"])


def run(request: Request, renderer: Renderer | None) -> KernelReport:
    """Measure as far as it gets and write what is finished, whatever happened."""
    from sola_profile.commands.progress import follow
    from sola_profile.kernel_measuring import Sampling
    from sola_profile.kernel_sweep import KernelPlan, KernelSweep
    from sola_profile.report.kernel_json import kernel_json_text

    plan = KernelPlan(
        request.choice,
        Sampling(request.effort.rounds, request.compiled),
        request.effort.budget_s,
        request.effort.ceiling_s,
        crossover=request.crossover,
        models=request.models,
        resolutions=request.resolutions,
        command=written_command(),
    )
    sweep = KernelSweep(plan)
    try:
        for _ in follow(sweep.run()):
            if sweep.measuring:
                request.targets.checkpoint(RESULT, lambda: kernel_json_text(sweep.report()))
    except KeyboardInterrupt:
        sweep.interrupted = True
    finally:
        finished = sweep.report()
        if finished.rows:
            write(finished, request.targets, renderer)
    return finished


def write(finished: KernelReport, targets: Targets, renderer: Renderer | None) -> None:
    """Everything that was asked for: raw results first, the terminal last, and also where a file can't be written."""
    from sola_profile.report.kernel_terminal import print_kernels

    console = targets.console()
    try:
        write_files(finished, targets, renderer)
    finally:
        print_kernels(finished, console)
    if targets.folder is not None:
        console.print(f"Report: {targets.folder / NAME}.md", highlight=False, soft_wrap=True)


def write_files(finished: KernelReport, targets: Targets, renderer: Renderer | None) -> None:
    """The report and the raw results."""
    from sola_profile.report.kernel_json import kernel_json_text

    if targets.folder is not None or targets.files:
        text = kernel_json_text(finished)
        targets.put(RESULT, text)
        targets.deliver(dict.fromkeys(targets.files, text))
    if targets.folder is not None and renderer is not None:
        from sola_profile.report.kernel_markdown import write_kernel_page

        problem = write_kernel_page(finished, targets.folder, NAME, renderer, [RESULT])
        if problem:
            click.echo(f"the report has no picture: {problem}", err=True)


def read_request(options: dict[str, Any]) -> Request:
    """Check everything that can be checked without running anything; bad use raises ``click.UsageError``."""
    quick = options["quick"]
    narrowed = bool(quick or options["ops"] or options["shapes"])
    effort = QUICK if quick else FULL
    if options["budget"] is not None:
        effort = replace(effort, budget_s=checked_budget(options["budget"]))
    folder = report_folder(options, None if quick else Path("docs", "reports"))
    return Request(
        choice=read_choice(options),
        effort=effort,
        compiled=not (options["no_compile"] or quick),
        crossover=not narrowed if options["crossover"] is None else options["crossover"],
        models=read_models(options["models"] or ((NO_MODEL,) if narrowed else MODELS)),
        resolutions=checked(lambda: parse_resolutions(options["res"]), "--res"),
        targets=Targets(folder, {"json": options["json_file"]} if options["json_file"] else {}),
    )


def read_models(texts: tuple[str, ...]) -> tuple[BackboneSpec, ...]:
    """The presets that are named, each once; ``none`` is no model."""
    names = dict.fromkeys(name.strip() for text in texts for name in text.split(","))
    return tuple(checked(partial(read_spec, name), "--model") for name in names if name != NO_MODEL)


def usable_cores() -> int:
    """Physical cores that this process may run on: more threads than that only get in each other's way."""
    import psutil

    physical = psutil.cpu_count(logical=False) or 1
    return min(physical, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else int(physical)


def read_choice(options: dict[str, Any]) -> Choice:
    """The cases that are named: without ``--shape`` the shapes of the operators, without ``--op`` all that take one."""
    ops = checked(lambda: parse_names(options["ops"] or list(KERNELS), list(KERNELS), "op"), "--op")
    if options["shapes"]:
        shapes = checked(lambda: parse_shapes(options["shapes"]), "--shape")
        ops = ops if options["ops"] else tuple(op for op in ops if any(takes(op, shape) for shape in shapes))
    else:
        known = QUICK_SHAPES if options["quick"] else ()
        shapes = tuple(shape for shape in known if any(takes(op, shape) for op in ops))
    dtypes = checked(lambda: parse_dtypes(options["dtypes"] or DEFAULT_DTYPES), "--dtype")
    modes = checked(lambda: parse_names(options["modes"] or KERNEL_MODES, KERNEL_MODES, "mode"), "--mode")
    text = options["threads"] or ("1" if options["quick"] else "1,all")
    threads = checked(lambda: parse_threads(text, usable_cores()), "--threads")
    choice = Choice(ops, shapes, dtypes, modes, threads)
    checked(choice.cases, "--shape")
    return choice
