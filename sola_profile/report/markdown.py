"""A profile as a Markdown page, which names the charts that lie beside it."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2

from sola_profile.machine import Environment
from sola_profile.report.numbers import mebibytes
from sola_profile.report.sentences import (
    coverage_sentence,
    growth_sentences,
    polynomial_sentences,
    refusal_sentences,
    scalar_sentence,
    witness_sentences,
)
from sola_profile.report.tables import (
    ROLE_NAMES,
    Table,
    comparison_table,
    difference_table,
    headline,
    kinds_table,
    latency_table,
    memory_table,
    polynomial_table,
    witness_table,
    work_table,
)
from sola_profile.result import Profile


def page_text(profile: Profile, charts: Sequence[str], others: Sequence[str]) -> str:
    """The page itself, without writing anything."""
    rows, settings = profile.model.rows, profile.settings
    differences = difference_table(profile)
    polynomials, comparison = polynomial_table(profile.model), comparison_table(profile)
    on_cpu = settings.device_type == "cpu"
    return template("report.md.j2").render(
        title=profile.model.name,
        headline=_cell(headline(profile)),
        command=profile.command,
        interrupted=profile.interrupted,
        environment=profile.environment,
        work=markdown(work_table(profile)),
        padded=any(row.case.padded for row in rows),
        witnesses=markdown(witness_table(profile)),
        differences=markdown(differences) if differences else "",
        coverage=coverage_sentence(profile, names=True),
        remarks=[*witness_sentences(profile), *refusal_sentences(profile)],
        origin=rows[0].cost.origin,
        backbone=profile.model.spec is not None,
        scalars=scalar_sentence(profile),
        polynomial=markdown(polynomials) if polynomials else "",
        polynomial_sentences=list(polynomial_sentences(profile)),
        growth_sentences=list(growth_sentences(profile.model, profile)),
        kinds=markdown(kinds_table(profile)),
        timed=any(row.kind_times for row in rows),
        comparison=markdown(comparison) if comparison else "",
        comparison_title=comparison.title if comparison else "",
        twins=all(role in ROLE_NAMES for role in profile.twins),
        measured=markdown(latency_table(profile)) if profile.budget_s is not None else "",
        memory=markdown(memory_table(profile)),
        train=settings.mode == "train",
        optimizer=settings.optimizer != "none",
        compiled=settings.compile,
        allocator="the allocation events of PyTorch's CPU allocator" if on_cpu else "`torch.cuda.max_memory_allocated`",
        environment_table=markdown(environment_table(profile.environment)),
        artefacts=", ".join(f"[`{name}`]({name})" for name in others),
        charts=charts,
    )


def template(name: str, *, escape: bool = False) -> jinja2.Template:
    """A page of ``templates/`` with its blanks; ``escape`` what is filled in, for HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sola_profile.report"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=escape,
    )
    return environment.get_template(name)


def markdown(table: Table) -> str:
    """A Markdown table, a blank line before and after it."""
    marks = [":--" if name in table.left else "--:" for name in table.columns]
    lines = [_row(table.columns), _row(marks), *(_row([_cell(cell) for cell in row]) for row in table.rows)]
    return "\n" + "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def environment_table(environment: Environment) -> Table:
    """What it ran on."""
    rows = [
        ("CPU", f"{environment.cpu}, {environment.cores} cores, {environment.logical_cores} logical"),
        ("Memory", mebibytes(environment.memory_bytes)),
        ("Load before", f"{environment.load_1min:.2f}"),
        ("System", environment.operating_system),
        ("Python, PyTorch", f"{environment.python}, {environment.torch}"),
        ("PyTorch threads, instruction set", f"{environment.threads}, {environment.cpu_capability}"),
        ("sola_vision", environment.sola_vision),
        ("Compiled operators", ", ".join(f"{key}: {value or 'none'}" for key, value in environment.kernels.items())),
    ]
    if environment.gpu is not None:
        rows.insert(1, ("GPU", f"{environment.gpu}, CUDA {environment.cuda}, cuDNN {environment.cudnn}"))
        rows.append(("TF32 in matrix products", "yes" if environment.tf32 else "no"))
    return Table("Environment", ("", "Value"), tuple(rows), frozenset({"", "Value"}))
