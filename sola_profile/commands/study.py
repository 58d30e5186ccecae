"""``sola-profile study``: what every layer of a model mixes, and how far a stack of them reaches."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sola_profile.case import MOST_THREADS, parse_resolutions
from sola_profile.commands.output import Targets, checked, written_command
from sola_profile.exit_codes import ExitCode
from sola_profile.report.svg import Renderer
from sola_profile.study.subject import read_subject

if TYPE_CHECKING:
    from sola_profile.study.instruments import Studying
    from sola_profile.study.study_result import Study, StudyQuestion

IMAGES, MATRICES, ROWS = 3, 8, 512


@click.command()
@click.option(
    "-m", "--model", required=True, metavar="NAME", help="A preset such as sola_t, or package.module:factory."
)
@click.option("-r", "--res", default="224", show_default=True, metavar="LIST", help="Pixels: 224,512 or 512x2048.")
@click.option("--pattern", metavar="PATTERN", help="Another pattern of layers.")
@click.option("--weights", metavar="FILE", help="Trained weights: safetensors or a checkpoint.")
@click.option("--images", metavar="FOLDER", help="Images to look at, or task:match:d=16.  [default: generated ones]")
@click.option(
    "--count", default=IMAGES, show_default=True, metavar="N", help="Images; matrices are those of the first."
)
@click.option("--matrices", default=MATRICES, show_default=True, metavar="N", help="Heads or channels per layer.")
@click.option("--rows", default=ROWS, show_default=True, metavar="N", help="Rows of each matrix; 0 for all.")
@click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), metavar="N", help="Threads of PyTorch's CPU operators."
)
@click.option("--out", metavar="FOLDER", help="Write a page with its charts there.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything as JSON; - is standard output.")
def study(**options: Any) -> None:
    """Look into a model: the mixing matrix of every layer, features across layers, and how far a stack reaches.

    Every matrix is written out from its definition and checked against the operator. Exits with 1 when one differs.
    """
    question = read_question(options)
    targets = Targets(
        Path(options["out"]) if options["out"] else None, {"json": options["json_file"]} if options["json_file"] else {}
    )
    targets.check()
    from sola_profile.study.instruments import Studying

    studying = checked(lambda: Studying(question), "--images")
    with Renderer() if targets.folder else nullcontext() as renderer:
        found = run(studying)
        write(found, targets, renderer)
    if found.interrupted:
        raise KeyboardInterrupt
    if not found.agrees:
        raise SystemExit(ExitCode.INTERNAL)


def read_question(options: dict[str, Any]) -> StudyQuestion:
    """Check the command line; bad use raises ``click.UsageError``."""
    subject = checked(lambda: read_subject(options["model"], options["pattern"]))
    sizes = checked(lambda: parse_resolutions(options["res"]), "--res")
    from sola_profile.study.images import Samples
    from sola_profile.study.study_result import Extent, StudyQuestion

    file = Path(options["weights"]) if options["weights"] else None
    images = options["images"] or None
    samples = checked(lambda: Samples.of(options["count"], images), "--images" if images else "--count")
    model, weights = checked(lambda: subject.model(file), "--weights")
    return StudyQuestion(
        model=model,
        sizes=sizes,
        samples=samples,
        extent=checked(lambda: Extent(options["matrices"], options["rows"])),
        weights=weights,
        threads=options["threads"],
        command=written_command(),
    )


def run(studying: Studying) -> Study:
    """Go through the work; what was found before an interruption is kept."""
    try:
        for step in studying.run():
            click.echo(step, err=True)
    except KeyboardInterrupt:
        click.echo("interrupted: what follows is what was known by then", err=True)
        studying.interrupted = True
    return studying.result()


def write(found: Study, targets: Targets, renderer: Renderer | None) -> None:
    """Files first, the terminal last, and also where a file can't be written."""
    from sola_profile.report.study import print_study
    from sola_profile.report.study_folder import write_study
    from sola_profile.report.study_json import study_json

    try:
        if targets.folder is not None and renderer is not None:
            problem = write_study(found, targets.folder, renderer)
            if problem:
                click.echo(f"no charts: {problem}", err=True)
        targets.deliver({name: study_json(found) for name in targets.files})
    finally:
        print_study(found, targets.console())
