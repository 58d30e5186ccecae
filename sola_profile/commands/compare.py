"""``sola-profile compare``: did a change make a model cost more? From two result files, or by running two versions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sola_profile.case import Settings, parse_resolutions
from sola_profile.commands.gates import gate_options, load_side, read_gates, refuse_mismatches
from sola_profile.commands.output import Targets, checked, checked_budget
from sola_profile.exit_codes import ExitCode
from sola_profile.source import read_source

if TYPE_CHECKING:
    from sola_profile.comparison import Comparison, Gates

FILES = 2
BUDGET_S = 60.0
# an interval over launches takes as many
LAUNCHES = 6
# options of a run
RUNNING = ("model", "res", "threads", "budget", "launches")


@click.command()
@click.argument("files", nargs=-1, metavar="[OLD.json NEW.json]")
@gate_options
@click.option("--against-env", metavar="PYTHON", help="Run now: the old side is the sola_vision of this interpreter.")
@click.option("-m", "--model", metavar="NAME", help="What to run with --against-env, as for profile.")
@click.option("-r", "--res", default="224,512", show_default=True, metavar="SIZES", help="Sizes, with --against-env.")
@click.option("--threads", type=int, metavar="N", help="Threads of PyTorch's CPU operators, with --against-env.")
@click.option(
    "--budget", default=BUDGET_S, show_default=True, metavar="SECONDS", help="Time for the turns, with --against-env."
)
@click.option(
    "--launches",
    default=LAUNCHES,
    show_default=True,
    metavar="N",
    help="New processes of each side, with --against-env.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the comparison as JSON; - is standard output.")
@click.option("--markdown", "markdown_file", metavar="FILE", help="Write it as Markdown; - is standard output.")
def compare(**options: Any) -> None:
    """Compare two results of sola-profile --json, or two installed versions; exit with 3 when a figure is worse.

    MACs, scalar operations, parameters and predicted peak memory must not grow at all, unless --tolerance lets them.
    Measured time decides only with --max-regression. Two files come from separate runs; --against-env runs both
    versions in turns, each in new processes of its own interpreter, which is the way to ask whether a change made a
    model slower.
    """
    gates = read_gates(options)
    targets = Targets(None, {name: options[f"{name}_file"] for name in ("json", "markdown") if options[f"{name}_file"]})
    if options["against_env"] is not None:
        if options["files"]:
            raise click.UsageError("--against-env runs both sides itself and takes no files")
        targets.check()
        found, cut_short = run_both(options, gates)
    else:
        refuse_for_files(click.get_current_context())
        targets.check()
        cut_short = None
        found = read_both(options["files"], gates, allow_mismatch=options["allow_mismatch"])
    show(found, targets)
    sys.exit(found.exit_code if cut_short is None else cut_short)


def refuse_for_files(context: click.Context) -> None:
    """What says how to run is bad use where nothing is run."""
    for name in RUNNING:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is for --against-env PYTHON; two files come from runs that are over")


def read_both(files: Sequence[str], gates: Gates, *, allow_mismatch: bool) -> Comparison:
    """Compare two files."""
    from sola_profile.comparison import compare as compare_profiles

    if len(files) != FILES:
        raise click.UsageError(f"expected two results, OLD.json NEW.json, got {len(files)}; or --against-env PYTHON")
    old, new = ((path, load_side(path)) for path in files)
    found = checked(lambda: compare_profiles(old, new, gates))
    refuse_mismatches(found.mismatches, allow=allow_mismatch)
    if gates.limit is not None and not any(time.ratio for time in found.times):
        raise click.UsageError("--max-regression compares times, and no size has one on both sides")
    return found


def run_both(options: dict[str, Any], gates: Gates) -> tuple[Comparison, ExitCode | None]:
    """Count and time the installed version and that of another interpreter; the code of a run that was cut short."""
    from sola_profile.commands.progress import follow
    from sola_profile.versions import VersionError, Versions

    if not options["model"]:
        raise click.UsageError("--against-env needs --model")
    checked(lambda: read_source(options["model"]))
    if options["launches"] < LAUNCHES:
        message = f"expected at least {LAUNCHES}, got {options['launches']}"
        raise click.BadParameter(message, param_hint="--launches")
    versions = Versions(
        options["model"],
        checked(lambda: parse_resolutions(options["res"]), "--res"),
        checked(lambda: Settings(threads=options["threads"])),
        options["against_env"],
        launches=options["launches"],
        budget_s=checked_budget(options["budget"]),
    )
    cut_short = None
    try:
        for _ in follow(versions.count()):
            pass
        refuse_mismatches(versions.mismatches, allow=options["allow_mismatch"])
        for _ in follow(versions.race()):
            pass
    except VersionError as error:
        if not versions.samples:
            raise click.UsageError(str(error)) from error
        # launches that were finished before it are worth a look
        click.echo(f"stopped early: {error}", err=True)
        cut_short = ExitCode.INTERNAL
    except KeyboardInterrupt:
        if not versions.samples:
            raise
        click.echo("interrupted: what follows was finished", err=True)
        cut_short = ExitCode.INTERRUPTED
    return checked(lambda: versions.comparison(gates)), cut_short


def show(found: Comparison, targets: Targets) -> None:
    """Files first, the terminal last, and also where a file can't be written."""
    from sola_profile.report.comparison import comparison_json, markdown_text, print_comparison

    writers = {"json": comparison_json, "markdown": markdown_text}
    try:
        targets.deliver({name: writers[name](found) for name in targets.files})
    finally:
        print_comparison(found, targets.console())
