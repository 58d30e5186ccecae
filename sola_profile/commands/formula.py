"""``sola-profile formula``: what any model costs as exact polynomials in the size of its image."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sola_profile.case import DTYPES, Resolution, nearest, parse_resolutions
from sola_profile.commands.output import Targets, check_positive, checked, written_command
from sola_profile.errors import refused_sizes
from sola_profile.exit_codes import ExitCode
from sola_profile.source import DEFAULT_INPUT, BuildError, InputShape, ModelSource, read_source

if TYPE_CHECKING:
    from sola_profile.formula_result import FormulaResult

LIMIT_S = 60.0
GROUPS = ("kind", "module", "operator")


@dataclass(frozen=True)
class Request:
    """The command line, checked."""

    source: ModelSource
    shape: InputShape
    resolutions: tuple[Resolution, ...]
    dtype: str
    limit_s: float
    memory_bytes: int | None
    measure: bool
    targets: Targets


@click.command()
@click.option(
    "-m",
    "--model",
    required=True,
    metavar="NAME",
    help="A preset, timm:NAME, torchvision:NAME or package.module:factory.",
)
@click.option(
    "--input", "shape", default=DEFAULT_INPUT, show_default=True, metavar="SHAPE", help="What the model takes."
)
@click.option(
    "-r", "--res", default="224,512,1024", show_default=True, metavar="SIZES", help="Sizes to count and check."
)
@click.option("--pattern", metavar="PATTERN", help="Another layer pattern of a preset.")
@click.option("--dtype", default="float32", show_default=True, metavar="DTYPE", help=f"{', '.join(DTYPES)}.")
@click.option(
    "--by", default="kind", show_default=True, metavar="WHAT", help=f"Break MACs down by {', '.join(GROUPS)}."
)
@click.option("--depth", default=2, show_default=True, metavar="N", help="Parts of a module's path, with --by module.")
@click.option("--limit", default=LIMIT_S, show_default=True, metavar="SECONDS", help="Time to look for polynomials.")
@click.option("--memory", metavar="SIZE", help="Largest image that fits, for instance in 8GiB.")
@click.option("--measure-memory", "measure", is_flag=True, help="Run every size once and read the CPU allocator.")
@click.option("--latex", "as_latex", is_flag=True, help="Print the formulas for a paper instead of tables.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything as JSON; - is standard output.")
@click.option("--strict", is_flag=True, help="Exit with 2 when a witness contradicts or an operator is uncounted.")
def formula(**options: Any) -> None:
    """State what any model's forward pass costs as exact polynomials, and check them against independent counters.

    MACs, FLOPs, scalar operations and bytes moved, in the number of positions N or the sides H and W, by kind of
    product, by module or by operator; and peak memory. Nothing is run unless --measure-memory asks for it: shapes alone
    are followed.
    """
    request = read_request(options)
    request.targets.check()
    finished = run(request)
    show(finished, request.targets, options)
    if finished.failed and not finished.rows:
        found = finished.formula
        raise click.UsageError(refused_sizes(found.source.name, found.shape, finished.failed))
    if options["strict"] and (complaints := list(objections(finished))):
        click.echo(f"strict: {'; '.join(complaints)}", err=True)
        sys.exit(ExitCode.USAGE)


def read_request(options: dict[str, Any]) -> Request:
    """Check everything that can be checked without looking at the model; bad use raises ``click.UsageError``."""
    source = checked(lambda: read_source(options["model"], options["pattern"]))
    shape = checked(lambda: InputShape.parse(options["shape"]), "--input")
    resolutions = checked(lambda: parse_resolutions(options["res"]), "--res")
    for name, known in (("dtype", DTYPES), ("by", GROUPS)):
        if options[name] not in known:
            hint = nearest(options[name], known)
            message = f"expected one of {', '.join(known)}, got {options[name]!r}{hint}"
            raise click.BadParameter(message, param_hint=f"--{name}")
    for name in ("limit", "depth"):
        check_positive(options[name], f"--{name}")
    files = {"json": options["json_file"]} if options["json_file"] else {}
    memory = options["memory"]
    limit_bytes = None if memory is None else checked(lambda: parse_bytes(memory), "--memory")
    return Request(
        source,
        shape,
        resolutions,
        options["dtype"],
        options["limit"],
        limit_bytes,
        options["measure"],
        Targets(None, files),
    )


def parse_bytes(text: str) -> int:
    """Read ``8GiB``, ``500MB`` or ``1e9``; raises ``ValueError``."""
    match = _BYTES.fullmatch(text.strip())
    if match is None or not 0 < float(match[1]) < math.inf:
        raise ValueError(f"expected a memory such as 8GiB, 500MB or a number of bytes, got {text!r}")
    power = ("", "K", "M", "G", "T").index(match[2].upper())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


_BYTES = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[0-9]+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def run(request: Request) -> FormulaResult:
    """Look for the formula and check it; what was found before an interruption is kept."""
    from sola_profile.formula_sweep import FormulaSweep, MemoryOptions

    sweep = FormulaSweep(
        request.source,
        request.resolutions,
        request.shape,
        request.dtype,
        request.limit_s,
        written_command(),
        MemoryOptions(request.measure, request.memory_bytes),
    )
    try:
        for step in sweep.run():
            click.echo(step, err=True)
    except BuildError as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        if sweep.result() is None:
            raise
        click.echo("interrupted: what follows was finished", err=True)
    result = sweep.result()
    assert result is not None
    return result


def show(result: FormulaResult, targets: Targets, options: dict[str, Any]) -> None:
    """JSON where it was asked for, formulas or tables on the terminal."""
    from sola_profile.report.formula_json import json_text
    from sola_profile.report.formula_tables import latex
    from sola_profile.report.formula_terminal import print_formula

    if targets.files:
        targets.deliver({"json": json_text(result)})
    if not options["as_latex"]:
        print_formula(result, targets.console(), options["by"], options["depth"])
    elif result.formula.recording is None:
        raise click.UsageError(f"there is no formula to print: {result.formula.why}")
    else:
        click.echo(latex(result), nl=False, err="-" in targets.files.values())


def objections(result: FormulaResult) -> Iterator[str]:
    """What ``--strict`` holds against a result."""
    for row in result.rows:
        against = sorted({name for check in row.checks for name in check.contradicted_by})
        if against:
            yield f"{', '.join(against)} contradicts the formulas at {row.resolution}"
    if result.coverage.unknown:
        yield f"operators whose work is unknown: {', '.join(result.coverage.unknown)}"
    for size, reason in result.failed.items():
        yield f"the model refuses {size}: {reason}"
