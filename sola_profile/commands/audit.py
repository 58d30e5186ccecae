"""``sola-profile audit``: published costs of models beside our own count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sola_profile.commands.output import Targets, checked, written_command

PAGE = "audit.md"


@click.command()
@click.option("-m", "--model", "models", metavar="NAMES", help="Only these, as published: sola_t,timm:deit_small…")
@click.option("--out", metavar="FOLDER", help=f"Write the page {PAGE} there.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything as JSON; - is standard output.")
def audit(models: str | None, out: str | None, json_file: str | None) -> None:
    """Set published costs beside ours and say what explains the difference.

    The list has SoLA at three sizes, ViT, DeiT, Swin, XCiT, EfficientViT, MambaOut and others, each with its source. timm
    must be installed for those models.
    """
    targets = Targets(Path(out) if out else None, {"json": json_file} if json_file else {})
    chosen, sources = checked(lambda: _figures(models), "--model")
    targets.check()
    from sola_profile.audit import Audit
    from sola_profile.report.audit import audit_json, audit_page, audit_table, summary
    from sola_profile.report.terminal import print_table

    found, command = Audit(chosen), written_command()
    try:
        for step in found.run():
            click.echo(step, err=True)
    finally:
        if found.rows:
            targets.put(PAGE, audit_page(found.rows, found.failed, sources, command))
            targets.deliver({name: audit_json(found.rows, found.failed, command) for name in targets.files})
            console = targets.console()
            print_table(audit_table(found.rows), console)
            console.print(summary(found.rows))
    for figure, reason in found.failed.items():
        click.echo(f"{figure.model} at {figure.size} could not be counted: {reason}", err=True)


def _figures(models: str | None) -> Any:
    from sola_profile.audit import read_figures
    from sola_profile.case import nearest

    figures, sources = read_figures()
    if models is None:
        return figures, sources
    known = {figure.model for figure in figures}
    wanted = [name.strip() for name in models.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ValueError(f"nothing published is listed for {name!r}{nearest(name, known)}")
    return tuple(figure for figure in figures if figure.model in wanted), sources
