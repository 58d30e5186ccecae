"""A comparison of two profiles as tables, Markdown for a remark in code review, and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from sola_profile.compare.gate import Figure, Time
from sola_profile.comparison import Comparison
from sola_profile.report.json_parts import Json, dump, interval_json
from sola_profile.report.markdown import markdown
from sola_profile.report.numbers import duration, percent, signed_percent, whole
from sola_profile.report.tables import Table
from sola_profile.report.terminal import print_table, remarks

COMPARISON_VERSION = 1


def headline(found: Comparison) -> str:
    """The verdict in one line."""
    number = len(found.regressions)
    if number:
        verdict = f"{number} {'figure is' if number == 1 else 'figures are'} worse"
    elif found.undecided:
        verdict = "nothing counted is worse, but times are undecided"
    else:
        verdict = "nothing is worse"
    return f"{found.model}: {verdict}"


def figure_table(found: Comparison) -> Table:
    """Counted figures of both sides, one per row."""
    rows = tuple(
        (
            figure.size,
            figure.name,
            figure.unit,
            "–" if figure.old is None else whole(figure.old),
            "–" if figure.new is None else whole(figure.new),
            _change(figure),
            figure.verdict.value,
        )
        for figure in found.figures
    )
    columns = ("Size", "Figure", "Unit", "Old", "New", "Change", "Verdict")
    return Table("Counted and predicted", columns, rows, frozenset({"Figure", "Unit", "Verdict"}))


def _change(figure: Figure) -> str:
    if figure.change is None:
        return "–"
    # a change that would round to nothing is one all the same
    shown = signed_percent(figure.change)
    return shown if not figure.change or shown.strip("+-") != "0.0 %" else f"{(figure.new or 0) - (figure.old or 0):+,}"


def time_table(found: Comparison) -> Table | None:
    """Measured latencies of both sides; None where neither has any."""
    if not found.times:
        return None
    rows = tuple((*_time_cells(time), time.verdict.value, time.why) for time in found.times)
    columns = ("Size", "Old", "New", "New / old", "95 % interval", "Verdict", "")
    return Table("Measured latency", columns, rows, frozenset({"Verdict", ""}))


def _time_cells(time: Time) -> tuple[str, ...]:
    sides = ["–" if value is None else duration(value) for value in (time.old_s, time.new_s)]
    if time.ratio is None:
        return (time.size, *sides, "–", "–")
    interval = time.ratio.interval
    return (time.size, *sides, f"{time.ratio.value:.3f}", f"{interval.low:.3f} – {interval.high:.3f}")


def sentences(found: Comparison) -> Iterator[str]:
    """How the figures were compared, and what should make a reader wary."""
    yield f"Old: {found.old.name}, {found.old.started}, sola_vision {found.old.version}."
    yield f"New: {found.new.name}, {found.new.started}, sola_vision {found.new.version}."
    tolerance = f"{percent(found.gates.tolerance)} more" if found.gates.tolerance else "no increase"
    yield f"Counted figures may show {tolerance}."
    if found.times:
        yield _timing_sentence(found)
    if found.mismatches:
        yield f"The runs differ: {'; '.join(map(str, found.mismatches))}."
    for name, sizes in (("old", found.only_old), ("new", found.only_new)):
        if sizes:
            yield f"Only the {name} side has {', '.join(sizes)}, which nothing was compared with."


def _timing_sentence(found: Comparison) -> str:
    limit = "no limit was set" if found.gates.limit is None else f"the limit is {percent(found.gates.limit)} more"
    if found.interleaved:
        return f"Times: both sides took turns in new processes of their own, launch after launch; {limit}."
    return (
        "Times: separate runs, not interleaved, so that another load or clock of the machine looks like a change of the "
        f"model; the intervals hold only the scatter within each run; {limit}."
    )


def print_comparison(found: Comparison, console: Console) -> None:
    """Print tables and sentences."""
    style = "bold red" if found.regressions else "bold yellow" if found.undecided else "bold"
    console.print(Text(headline(found), style=style))
    console.print()
    for table in filter(None, (figure_table(found), time_table(found))):
        print_table(table, console)
        for remark in remarks(table):
            console.print(Text(remark, style="yellow"))
    for sentence in sentences(found):
        console.print(Text(sentence))


def markdown_text(found: Comparison) -> str:
    """The same as Markdown."""
    parts = [f"### {headline(found).replace('|', '&#124;')}\n"]
    for table in filter(None, (figure_table(found), time_table(found))):
        parts.append(f"{table.title}:\n{markdown(table)}")
    return "\n".join([*parts, *(f"- {sentence}" for sentence in sentences(found))]) + "\n"


def comparison_json(found: Comparison) -> str:
    """The same as data; ``schema_version`` rises when a field changes its meaning or goes."""
    return dump(
        {
            "schema_version": COMPARISON_VERSION,
            "model": found.model,
            "old": asdict(found.old),
            "new": asdict(found.new),
            "gates": asdict(found.gates),
            "mismatches": [{key: str(value) for key, value in asdict(entry).items()} for entry in found.mismatches],
            "figures": [
                {**asdict(figure), "verdict": figure.verdict.name.lower(), "regression": figure.verdict.regression}
                for figure in found.figures
            ],
            "times": [_time_json(time) for time in found.times],
            "interleaved": found.interleaved,
            "only_old": list(found.only_old),
            "only_new": list(found.only_new),
            "exit_code": int(found.exit_code),
        }
    )


def _time_json(time: Time) -> Json:
    ratio = None
    if time.ratio is not None:
        ratio = {"value": time.ratio.value, "interval": interval_json(time.ratio.interval)}
    return {
        "size": time.size,
        "old_s": time.old_s,
        "new_s": time.new_s,
        "ratio": ratio,
        "verdict": time.verdict.name.lower(),
        "regression": time.verdict.regression,
        "why": time.why,
    }
