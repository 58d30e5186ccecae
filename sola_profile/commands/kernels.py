"""``sola-profile kernels``: the compiled operators beside what PyTorch offers, in one process, in turn."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sola_profile.commands.output import Targets, checked, written_command
from sola_profile.kernel_case import (
    ATTENTION_SHAPES,
    DEFAULT_DTYPES,
    KERNEL_MODES,
    KERNELS,
    QUICK_SHAPES,
    WKV,
    WKV_SHAPES,
    Choice,
    parse_dtypes,
    parse_names,
    parse_shapes,
    parse_threads,
)

if TYPE_CHECKING:
    from sola_profile.kernel_result import KernelReport

NAME = "kernels-cpu"


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
    """The command line, checked."""

    choice: Choice
    effort: Effort
    compiled: bool
    targets: Targets


@click.command()
@click.option("--op", "ops", multiple=True, metavar="NAMES", help=f"{', '.join(KERNELS)}; all unless given.")
@click.option("--shape", "shapes", multiple=True, metavar="SHAPES", help="BxHxNxD such as 1x6x4096x64, wkv BxNxC.")
@click.option("--dtype", "dtypes", multiple=True, metavar="DTYPES", help=f"[default: {','.join(DEFAULT_DTYPES)}]")
@click.option(
    "--mode", "modes", multiple=True, metavar="MODES", help=f"{' or '.join(KERNEL_MODES)}; both unless given."
)
@click.option("--threads", metavar="NUMBERS", help="Such as 1,all.  [default: 1,all; quick: 1]")
@click.option("--quick", is_flag=True, help="One shape per operator, few samples, nothing compiled: under a minute.")
@click.option("--budget", type=float, metavar="SECONDS", help="Time for all measuring.  [default: 1800; quick: 40]")
@click.option("--no-compile", is_flag=True, help="Leave out torch.compile, which takes long to start.")
@click.option("--out", metavar="FOLDER", help=f"Where {NAME}.md goes.  [default: docs/reports; quick: nowhere]")
@click.option("--no-report", is_flag=True, help="Write no report.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything as JSON; - is standard output.")
def kernels(**options: Any) -> None:
    """Compare the compiled operators with what PyTorch offers, on this machine's CPU.

    The ceilings of the machine come first; then all routes of a case take turns on the same inputs. Ratios are times
    of a peer over ours, errors are against float64.
    """
    request = read_request(options)
    request.targets.check()
    finished = run(request)
    if finished.interrupted:
        raise KeyboardInterrupt


def run(request: Request) -> KernelReport:
    """Measure as far as it gets and write what is finished, whatever happened."""
    from sola_profile.commands.progress import follow
    from sola_profile.kernel_measuring import Sampling
    from sola_profile.kernel_sweep import KernelPlan, KernelSweep

    effort = request.effort
    sampling = Sampling(effort.rounds, request.compiled)
    sweep = KernelSweep(KernelPlan(request.choice, sampling, effort.budget_s, effort.ceiling_s, written_command()))
    try:
        for _ in follow(sweep.run()):
            pass
    except KeyboardInterrupt:
        sweep.interrupted = True
    finally:
        finished = sweep.report()
        if sweep.measured:
            write(finished, request.targets)
    return finished


def write(finished: KernelReport, targets: Targets) -> None:
    """Everything that was asked for: raw results first, the terminal last."""
    from sola_profile.report.kernel_json import kernel_json_text
    from sola_profile.report.kernel_terminal import print_kernels

    if targets.folder is not None or targets.files:
        text = kernel_json_text(finished)
        targets.put(f"{NAME}.json", text)
        targets.deliver(dict.fromkeys(targets.files, text))
    console = targets.console()
    print_kernels(finished, console)
    if targets.folder is not None:
        console.print(f"Report: {targets.folder / NAME}.json", highlight=False, soft_wrap=True)


def read_request(options: dict[str, Any]) -> Request:
    """Check everything that can be checked without running anything; bad use raises ``click.UsageError``."""
    quick = options["quick"]
    effort = QUICK if quick else FULL
    if options["budget"] is not None:
        if options["budget"] <= 0:
            raise click.BadParameter(f"expected more than 0 seconds, got {options['budget']:g}", param_hint="--budget")
        effort = Effort(effort.rounds, options["budget"], effort.ceiling_s)
    folder = None
    if options["out"] and options["no_report"]:
        raise click.UsageError("--out and --no-report exclude each other")
    if options["out"] or not (options["no_report"] or quick):
        folder = Path(options["out"] or Path("docs", "reports"))
    files = {"json": options["json_file"]} if options["json_file"] else {}
    compiled = not (options["no_compile"] or quick)
    return Request(read_choice(options), effort, compiled, Targets(folder, files))


def read_choice(options: dict[str, Any]) -> Choice:
    """The cases that the command line names; without ``--shape`` the shapes of the operators it names."""
    quick = options["quick"]
    ops = checked(lambda: parse_names(options["ops"] or list(KERNELS), list(KERNELS), "op"), "--op")
    if options["shapes"]:
        shapes = checked(lambda: parse_shapes(options["shapes"]), "--shape")
        # a shape alone chooses the operators that take it
        if not options["ops"]:
            ops = tuple(op for op in ops if any(shape.is_wkv == (op == WKV) for shape in shapes))
    else:
        known = QUICK_SHAPES if quick else ATTENTION_SHAPES + WKV_SHAPES
        shapes = tuple(shape for shape in known if any(shape.is_wkv == (op == WKV) for op in ops))
    dtypes = checked(lambda: parse_dtypes(options["dtypes"] or DEFAULT_DTYPES), "--dtype")
    modes = checked(lambda: parse_names(options["modes"] or KERNEL_MODES, KERNEL_MODES, "mode"), "--mode")
    text = options["threads"] or ("1" if quick else "1,all")
    threads = checked(lambda: parse_threads(text, len(os.sched_getaffinity(0))), "--threads")
    choice = Choice(ops, shapes, dtypes, modes, threads)
    checked(choice.cases, "--shape")
    return choice
