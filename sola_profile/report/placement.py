"""A placement as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from sola_profile.report.numbers import (
    doubts_text,
    duration,
    duration_interval,
    mebibytes,
    percent,
    signed_percent,
    significant,
    whole,
)
from sola_profile.report.tables import Table
from sola_profile.report.terminal import print_table
from sola_profile.study.placement import ACCURACY, Confirmation, Option, Placement
from sola_profile.study.reach import HORIZON, RUN
from sola_profile.study.space import LATENCY
from sola_vision.presets import PRESETS

NONE = "–"
CHOSEN = "chosen"
_LEFT = frozenset({"Pattern", "Known as", "Change", ""})


def score_text(name: str, value: float | None) -> str:
    """A score with its unit, as far as it needs one."""
    if value is None:
        return NONE
    if name == RUN:
        return whole(round(value))
    return f"{value:.2f}" if name == ACCURACY else percent(value)


def cost_text(option: Option, cost: str) -> str:
    """What the front is drawn against."""
    if cost != LATENCY:
        return f"{significant(option.macs / 1e9, 4)} GMACs"
    return NONE if option.latency_s is None else duration(option.latency_s)


def front_table(placement: Placement) -> Table:
    """The front, or so much of it as has a predicted memory, from cheap to dear."""
    shown = [option for option in placement.front if option.memory is not None]
    left_out = len(placement.front) - len(shown)
    title = f"Front of cost and reach{f', {left_out} points between these not shown' if left_out else ''}"
    return _table(title, placement, shown, with_front=False)


def reference_table(placement: Placement) -> Table:
    """Patterns that a reader knows."""
    return _table("Known patterns", placement, placement.references, with_front=True)


def _table(title: str, placement: Placement, options: object, *, with_front: bool) -> Table:
    assert isinstance(options, (list, tuple))
    timed = any(option.latency_s is not None for option in options)
    rows = tuple(_cells(placement, option, timed=timed, with_front=with_front) for option in options)
    times = _time_columns(placement) if timed else ()
    last = ("Front",) if with_front else ()
    columns = ("Pattern", "Softmax", "GMACs", *times, placement.score.title, "Memory", "Known as", *last)
    return Table(title, columns, rows, _LEFT)


def _time_columns(placement: Placement) -> tuple[str, ...]:
    machine = placement.question.machine
    if machine is None:
        return "Latency", "95 % interval"
    # a data sheet knows no scatter
    return ("Predicted latency", "Range") if machine.measured else ("Predicted latency",)


def _cells(placement: Placement, option: Option, *, timed: bool, with_front: bool) -> tuple[str, ...]:
    is_chosen = placement.chosen is not None and option.pattern == placement.chosen.pattern
    times: tuple[str, ...] = ()
    if timed:
        interval = option.interval_s
        both = (cost_text(option, LATENCY), NONE if interval is None else duration_interval(interval))
        times = both[: len(_time_columns(placement))]
    names = ", ".join([*option.names, *([CHOSEN] if is_chosen else [])])
    on_front = ("yes" if option.on_front else "no" if option.within else "over budget",) if with_front else ()
    return (
        option.pattern,
        whole(option.softmax),
        significant(option.macs / 1e9, 4),
        *times,
        score_text(placement.score.name, option.score),
        NONE if option.memory is None else mebibytes(option.memory.total_bytes),
        names,
        *on_front,
    )


def swap_table(placement: Placement) -> Table:
    """One layer changed at a time."""
    own, rows = placement.own, []
    for swap in placement.swaps:
        option = swap.option
        time = NONE
        if option.latency_s is not None and own.latency_s:
            time = signed_percent(option.latency_s / own.latency_s - 1)
        before, after = (score_text(placement.score.name, each.score) for each in (own, option))
        macs = f"{(option.macs - own.macs) / 1e9:+.4f}"
        rows.append((swap.change, option.pattern, macs, time, f"{before} → {after}"))
    columns = ("Change", "Pattern", "GMACs", "Latency", placement.score.title)
    return Table(f"What if, from {own.pattern}", columns, tuple(rows), _LEFT)


def confirmation_table(placement: Placement) -> Table:
    """Whole models measured beside the sums of their layers."""
    rows = tuple(_confirmed(confirmation) for confirmation in placement.confirmations)
    columns = ("Pattern", "Predicted", "Measured", "95 % interval", "Runs", "Residual", "")
    return Table("Predicted from layers, and measured as a whole", columns, rows, _LEFT)


def _confirmed(confirmation: Confirmation) -> tuple[str, ...]:
    option, latency, residual = confirmation.option, confirmation.latency, confirmation.residual
    predicted = cost_text(option, LATENCY)
    if latency is None or residual is None:
        return (option.pattern, predicted, NONE, NONE, "0", NONE, "not measured: interrupted, or out of memory")
    return (
        option.pattern,
        predicted,
        duration(latency.median_s),
        duration_interval(latency.interval_s),
        whole(len(latency.samples_s)),
        signed_percent(residual),
        doubts_text(latency),
    )


def part_table(placement: Placement) -> Table:
    """Measured time of every part."""
    rows = tuple(
        (name, duration(latency.median_s), duration_interval(latency.interval_s), whole(len(latency.samples_s)))
        for name, latency in placement.parts.items()
    )
    return Table("Measured parts", ("Part", "Time", "95 % interval", "Runs"), rows, frozenset({"Part"}))


def headline(placement: Placement) -> str:
    """What was asked."""
    question, settings = placement.question, placement.question.settings
    threads = placement.environment.threads if settings.threads is None else settings.threads
    where = f"{settings.device}, threads: {threads}" if placement.parts else settings.device
    if question.machine is not None:
        where = question.machine.name
    cost = "latency" if placement.cost == LATENCY else "MACs"
    return (
        f"{question.spec.name} at {question.resolution}, batch {settings.batch}, {settings.dtype}, {where}: "
        f"{placement.score.title.lower()} against {cost}"
    )


def sentences(placement: Placement) -> Iterator[str]:
    """What was found, what to do with it, and what to know besides."""
    listed = placement.score.listed
    kind = "of those whose score is known" if listed else f"of all {placement.size:,} patterns, exactly"
    points = "1 point" if len(placement.front) == 1 else f"{whole(len(placement.front))} points"
    yield f"The front has {points} {kind}; searched in {duration(placement.searched_s)}."
    yield from chosen_sentences(placement)
    yield from residual_sentences(placement)
    if placement.question.score == HORIZON:
        yield _horizon_sentence(placement)
    yield from placement.remarks
    if placement.interrupted:
        yield "Interrupted: measuring was not finished."


def chosen_sentences(placement: Placement) -> Iterator[str]:
    """The chosen pattern, and why."""
    chosen, own = placement.chosen, placement.own
    if chosen is None:
        yield "No pattern keeps to the budgets."
        return
    why = "within the budgets" if placement.limit is None else f"at no more than the cost of {own.pattern}"
    name = placement.score.name
    yield (
        f"Chosen: {chosen.pattern}, the best by {placement.score.title.lower()} {why}: {score_text(name, chosen.score)} at "
        f"{cost_text(chosen, placement.cost)}, where {own.pattern} has {score_text(name, own.score)} at "
        f"{cost_text(own, placement.cost)}."
    )


def residual_sentences(placement: Placement) -> Iterator[str]:
    """How far whole models are from the sums of their layers, and what that means for patterns that are near each other."""
    residuals = sorted(residual for each in placement.confirmations if (residual := each.residual) is not None)
    if len(residuals) < 2:
        return
    low, high = residuals[0], residuals[-1]
    apart = (1 + high) / (1 + low) - 1
    yield (
        f"Measured as a whole, models differ by {signed_percent(low)} to {signed_percent(high)} from the sums of their layers. What all share changes no "
        f"order; patterns whose latencies are within {percent(apart)} of each other can't be told apart."
    )


def usage(placement: Placement) -> Iterator[str]:
    """How to build the chosen pattern, and how to profile a preset's or to study a factory's, one line each."""
    if placement.chosen is None:
        return
    mixers = placement.question.mixers
    more = f", mixers={mixers!r}" if mixers else ""
    spec, pattern, source = placement.question.spec, placement.chosen.pattern, placement.question.source
    if PRESETS.get(spec.name) == spec:
        yield f'sola_vision.create_model("{spec.name}", pattern="{pattern}"{more})'
        yield f"sola-profile --model '{placement.model}'"
        return
    yield f'sola_vision.create_model(spec, pattern="{pattern}"{more})  # spec: of {source or spec.name}'
    if source:
        yield f"sola-profile study --model {source} --pattern '{pattern}'"


def _horizon_sentence(placement: Placement) -> str:
    mixers = placement.question.mixers.values() or placement.question.spec.mixers.values()
    per_sequence = any("sequence" in str(mixer) or str(mixer) == "wkv" for mixer in mixers)
    if per_sequence:
        return (
            "The decays are those of fresh layers. Where they are per sequence, a linear layer reaches a share of the image "
            "whatever its size, so patterns differ little; --decay-per token asks for the fixed decay of the paper's analysis."
        )
    return "The decays are those of fresh layers, fixed per token."


def tables(placement: Placement) -> Iterator[Table]:
    """Those that have something to say."""
    yield front_table(placement)
    yield reference_table(placement)
    if placement.swaps:
        yield swap_table(placement)
    if placement.confirmations:
        yield confirmation_table(placement)


def print_placement(placement: Placement, console: Console) -> None:
    """Tables and sentences; colours and width are the console's matter."""
    console.print(Text(headline(placement), style="bold"))
    console.print()
    for table in tables(placement):
        print_table(table, console)
        if "" in table.columns:
            for row in table.rows:
                if row[-1]:
                    console.print(Text(f" {row[0]}: {row[-1]}", style="yellow"))
    for sentence in sentences(placement):
        console.print(Text(sentence))
    for line in usage(placement):
        console.print(Text(f"  {line}"), soft_wrap=True)
