"""``sola-profile fit``: the largest batch and image that fit in a given memory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from sola_profile.case import DTYPES, MODES, OPTIMIZERS, Settings, parse_resolutions
from sola_profile.commands.formula import parse_bytes
from sola_profile.commands.output import Targets, checked
from sola_profile.errors import refused_sizes
from sola_profile.exit_codes import ExitCode
from sola_profile.source import DEFAULT_INPUT, BuildError, InputShape, read_source

if TYPE_CHECKING:
    from sola_profile.fitting import Fitting

HEADROOM_PERCENT = 5.0


@click.command()
@click.option("-m", "--model", required=True, metavar="NAME", help="As for the profile: a preset, timm:NAME…")
@click.option("--memory", required=True, metavar="SIZE", help="What may be used, such as 8GiB.")
@click.option("-r", "--res", default="224,512", show_default=True, metavar="SIZES", help="Sizes to find batches for.")
@click.option("--pattern", metavar="PATTERN", help="Another layer pattern of a preset.")
@click.option("--input", "shape", metavar="SHAPE", help=f"What the model takes.  [default: {DEFAULT_INPUT}]")
@click.option("--batch", default=1, show_default=True, metavar="N", help="Images, when looking for the largest size.")
@click.option("--dtype", default="float32", show_default=True, metavar="DTYPE", help=f"{', '.join(DTYPES)}.")
@click.option("--threads", type=int, metavar="N", help="Threads of PyTorch's CPU operators.")
@click.option("--mode", default="infer", show_default=True, metavar="MODE", help=f"{' or '.join(MODES)}.")
@click.option("--optimizer", default="none", show_default=True, metavar="NAME", help=f"{', '.join(OPTIMIZERS)}.")
@click.option("--checkpointing", is_flag=True, help="With train: compute every block again in the backward pass.")
@click.option(
    "--headroom", default=HEADROOM_PERCENT, show_default=True, metavar="PERCENT", help="Kept free of tensors."
)
@click.option("--confirm", is_flag=True, help="Run each answer on the CPU, in a process that may use no more.")
def fit(**options: Any) -> None:
    """Find the largest batch at every size, and the largest square image, that fit in a given memory.

    Predicted by following every tensor of a step, without running it; --confirm runs it, in a process of its own, and
    fails an answer where that grows by more. Exits with 5 when nothing fits, or an answer that was run doesn't.
    """
    source = checked(lambda: read_source(options["model"], options["pattern"]))
    resolutions = checked(lambda: parse_resolutions(options["res"]), "--res")
    limit_bytes = checked(lambda: parse_bytes(options["memory"]), "--memory")
    shape = None if options["shape"] is None else checked(lambda: InputShape.parse(options["shape"]), "--input")
    checked(lambda: source.check_input(shape), "--input")
    names = ("batch", "dtype", "threads", "mode", "optimizer", "checkpointing")
    settings = checked(lambda: Settings(**{name: options[name] for name in names}))
    if not 0 <= options["headroom"] < 100:
        raise click.BadParameter(f"expected 0 to 100, got {options['headroom']:g}", param_hint="--headroom")
    from sola_profile.fitting import Fitting

    fitting = Fitting(source, settings, limit_bytes, shape, options["headroom"] / 100)
    try:
        for step in fitting.run(resolutions, confirm=options["confirm"]):
            click.echo(step, err=True)
    except BuildError as error:
        raise click.UsageError(str(error)) from error
    finally:
        show(fitting, options["memory"])
    if not fitting.batches:
        raise click.UsageError(refused_sizes(source.name, shape or source.default_input, fitting.refused))
    for size, reason in fitting.refused.items():
        click.echo(f"{source.name} doesn't take {size}: {reason}", err=True)
    if not any(found.batch for found in fitting.batches):
        click.echo(f"not one image of these sizes fits in {options['memory']}", err=True)
        sys.exit(ExitCode.NOTHING_FITTED)
    failed = [f"{found.batch} at {found.resolution}: {seen.why}" for found, seen in fitting.unconfirmed]
    if failed:
        click.echo(f"--confirm: predicted to fit and failed: {'; '.join(failed)}", err=True)
        sys.exit(ExitCode.NOTHING_FITTED)


def show(fitting: Fitting, limit: str) -> None:
    """What is found by now, where there is something."""
    from sola_profile.report.fit_table import fit_table
    from sola_profile.report.terminal import print_table

    if fitting.batches or fitting.square:
        print_table(fit_table(fitting, limit), Targets(None, {}).console())
