"""A profile as one HTML file that needs nothing else: interactive charts, sortable tables, no network.

The charts are those of the Markdown page, with their colours turned into variables of the style sheet, so that they follow
the reader's light, dark or printed page.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from sola_profile.report.charts import Spec, specs
from sola_profile.report.markdown import environment_table, template
from sola_profile.report.numbers import duration, duration_interval, mebibytes, scaled, significant
from sola_profile.report.sentences import (
    coverage_sentence,
    growth_sentences,
    polynomial_sentences,
    refusal_sentences,
    scalar_sentence,
    witness_sentences,
)
from sola_profile.report.tables import (
    Table,
    comparison_table,
    contender_name,
    difference_table,
    headline,
    kinds_table,
    latency_table,
    memory_table,
    pieces_table,
    polynomial_table,
    residual_table,
    witness_table,
    work_table,
)
from sola_profile.result import Profile

PAGE = "report.html"

# colours of the charts that stand for page, ink and grid
_NEUTRAL: Mapping[str, str] = {
    "#000000": "--ink",
    "#111111": "--ink",
    "#222222": "--label",
    "#444444": "--axis",
    "#E3E5E8": "--grid",
    "#767676": "--guide",
}
# lines and the names at their ends have to stand out from a dark page too; bars carry their text with them
_LINES: Mapping[str, str] = {
    "#0072B2": "--blue",
    "#D55E00": "--red",
    "#009E73": "--green",
    "#CC79A7": "--pink",
    "#E69F00": "--orange",
    "#56B4E9": "--sky",
}


@dataclass(frozen=True)
class Card:
    """A figure that the reader should see first."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Filter:
    """Shows the rows of one value of a column."""

    column: str
    place: int
    choices: tuple[str, ...]
    chosen: str


@dataclass(frozen=True)
class Shown:
    """A table on the page; ``folded`` until it is asked for."""

    table: Table
    folded: bool = False
    filter: Filter | None = None


@dataclass(frozen=True)
class Section:
    """One heading with its sentences, charts by name, and tables. ``series``: names that can be switched off."""

    id: str
    title: str
    texts: tuple[str, ...] = ()
    charts: tuple[str, ...] = ()
    tables: tuple[Shown, ...] = ()
    series: tuple[str, ...] = ()


def html_text(profile: Profile, drawn: Mapping[str, str], bundle: str) -> str:
    """The file. ``drawn``: the charts as SVG by name; ``bundle``: the JavaScript that draws their specs anew."""
    found = {name: spec for name, spec in specs(profile).items() if name in drawn}
    charts = {
        name: {"label": _label(spec), "image": f"data:image/svg+xml;base64,{_base64(drawn[name])}"}
        for name, spec in found.items()
    }
    folder = Path(__file__).parent / "templates"
    return template("report.html.j2", escape=True).render(
        title=profile.model.name,
        headline=headline(profile),
        interrupted=profile.interrupted,
        cards=list(_cards(profile)),
        sections=[section for section in _sections(profile, tuple(found)) if section.tables or section.charts],
        charts=charts,
        specs=_script(json.dumps({name: themed(spec) for name, spec in found.items()}, ensure_ascii=False)),
        bundle=_script(bundle),
        css=Markup((folder / "report.css").read_text(encoding="utf-8")),
        script=Markup((folder / "report.js").read_text(encoding="utf-8")),
        command=profile.command,
        version=profile.environment.sola_vision,
    )


def themed(spec: Spec) -> Spec:
    """A chart with variables of the style sheet for its colours."""
    text = json.dumps(spec, ensure_ascii=False)
    variables = {**_NEUTRAL, **(_LINES if '"type": "log"' in text else {}), "white": "--page"}
    if "middle" in text:
        # a name inside a bar keeps its colour, whatever the page's is
        variables.pop("white")
    for color, variable in variables.items():
        text = text.replace(f'"{color}"', f'"var({variable})"')
    found: Spec = json.loads(text)
    found["background"] = "transparent"
    return found


def _script(text: str) -> Markup:
    """Text for a script element, which must not end it early."""
    return Markup(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _label(spec: Spec) -> str:
    title = spec["title"]
    return f"{title['text']}: {title['subtitle']}" if "subtitle" in title else str(title["text"])


def _cards(profile: Profile) -> Iterator[Card]:
    rows, scaling, patch = profile.model.rows, profile.model.scaling, profile.model.patch
    last = rows[-1]
    yield Card("Parameters", scaled(last.cost.parameters))
    sizes = [rows[0], last] if len(rows) > 1 else [last]
    for row in sizes:
        yield Card(f"MACs at {row.resolution}", scaled(row.cost.macs), f"{scaled(2 * row.cost.macs)}FLOPs")
    timed = [row for row in rows if row.latency is not None]
    if timed and timed[-1].latency is not None:
        latency = timed[-1].latency
        note = f"95 % interval {duration_interval(latency.interval_s)}"
        yield Card(f"Latency at {timed[-1].resolution}", duration(latency.median_s), note)
    yield Card(f"Peak memory at {last.resolution}", mebibytes(last.predicted_memory.total_bytes), "predicted")
    if scaling.macs_slopes:
        slope = scaling.macs_slopes[-1]
        yield Card(
            "MACs grow as", f"N^{significant(slope.value)}", f"from N = {slope.from_tokens:,} to {slope.to_tokens:,}"
        )
    if scaling.complexity is not None and scaling.complexity.softmax_overtakes is not None:
        tokens = scaling.complexity.softmax_overtakes
        yield Card("Softmax costs most from", f"{round(patch * tokens**0.5):,}² px", f"N = {round(tokens):,}")


def _sections(profile: Profile, charts: Sequence[str]) -> Iterator[Section]:
    series = tuple(map(contender_name, profile.contenders)) if len(profile.contenders) > 1 else ()
    growth = (*polynomial_sentences(profile), *growth_sentences(profile.model, profile))
    scaling = tuple(name for name in ("flops.svg", "latency.svg") if name in charts)
    polynomials = polynomial_table(profile.model)
    yield Section("scaling", "How it grows", growth, scaling, _shown(polynomials), series)
    latency = latency_table(profile) if profile.budget_s is not None else None
    roofline = tuple(name for name in ("roofline.svg",) if name in charts)
    yield Section("latency", "Latency", (), roofline, _shown(latency))
    yield Section("comparison", "Beside others", (), (), _shown(comparison_table(profile)))
    shares = tuple(name for name in ("shares.svg",) if name in charts)
    yield Section("kinds", "Where the work is", (scalar_sentence(profile),), shares, _shown(kinds_table(profile)))
    memory = tuple(name for name in ("memory.svg", "timeline.svg") if name in charts)
    yield Section("memory", "Memory", (), memory, _shown(memory_table(profile)))
    remarks = (*witness_sentences(profile), *refusal_sentences(profile), coverage_sentence(profile, names=True))
    yield Section(
        "witnesses",
        "Witnesses",
        remarks,
        (),
        _shown(work_table(profile), residual_table(profile), witness_table(profile), difference_table(profile)),
    )
    yield Section("pieces", "Piece by piece", (), (), (_pieces(profile),))
    yield Section("environment", "Environment", (), (), _shown(environment_table(profile.environment)))


def _shown(*tables: Table | None) -> tuple[Shown, ...]:
    return tuple(Shown(table) for table in tables if table is not None and table.rows)


def _pieces(profile: Profile) -> Shown:
    sizes = tuple(str(row.resolution) for row in profile.model.rows)
    return Shown(pieces_table(profile), filter=Filter("Size", 0, sizes, sizes[-1]))
