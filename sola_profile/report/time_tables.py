"""Predicted and measured times as tables and sentences of text, which every written report shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sola_profile.compare.deviations import SHARE
from sola_profile.cost.recording import Call
from sola_profile.cost.roofline import BOUNDS, COMPUTE, MEMORY, OVERHEAD, CallTime, total
from sola_profile.cost.work import PRODUCT_KINDS
from sola_profile.measure.module_times import ITSELF, group_of
from sola_profile.report.machine_tables import busy_text
from sola_profile.report.numbers import doubts_text, duration, duration_interval, percent, scaled, signed_percent
from sola_profile.report.tables import Table
from sola_profile.time_result import OTHERS, ModelTimes, TimeResult, TimeRow, kind_of

# rows of a table by module or operator; the rest is one line
MOST_ROWS = 40


def headline(result: TimeResult) -> str:
    """The machine and the settings."""
    machine = result.machine
    threads = f", {machine.threads} thread{'s' if machine.threads > 1 else ''}" if machine.threads else ""
    how = f"ceilings measured {machine.measured_at}" if machine.measured else "NOT MEASURED, from data sheets"
    return f"on {machine.name}{threads}: {how}; input {result.shape}, {machine.dtype}, forward"


def time_table(model: ModelTimes, measured: bool) -> Table:
    """One line per size: predicted time with its interval, what bounds it, the measured time beside it."""
    rows = tuple(_time_cells(model, row, measured) for row in model.rows)
    columns = (
        "Size",
        "Predicted",
        f"{percent(SHARE, 0)} interval",
        *BOUNDS,
        *(("Measured", "Error") if measured else ()),
        "",
    )
    title = f"{model.name}  {scaled(model.parameters)} parameters" if model.parameters else model.name
    return Table(title, columns, rows, frozenset({""}))


def _time_cells(model: ModelTimes, row: TimeRow, measured: bool) -> tuple[str, ...]:
    interval = model.interval_s(row)
    shares = row.predicted.shares
    beside: tuple[str, ...] = ()
    if measured:
        latency = "–" if row.latency is None else duration(row.latency.median_s)
        beside = (latency, "–" if row.error is None else signed_percent(row.error))
    remark = f"not measured: {row.missing}" if row.missing else doubts_text(row.latency) if row.latency else ""
    return (
        str(row.resolution),
        duration(row.predicted.total.middle),
        "–" if interval is None else duration_interval(interval),
        *(percent(shares[bound], 0) for bound in (COMPUTE, MEMORY, OVERHEAD)),
        *beside,
        remark,
    )


def _group(call: Call, by: str, depth: int) -> str:
    if by == "kind":
        return kind_of(call)
    return group_of(call.module, depth) if by == "module" else call.operator


def group_table(row: TimeRow, by: str, depth: int) -> Table:
    """One size by kind, module or operator: time, share, bound, what it reaches, and the measured time of modules."""
    groups = row.predicted.grouped(lambda call: _group(call, by, depth))
    if by == "kind":
        groups = {kind: groups[kind] for kind in (*PRODUCT_KINDS, OTHERS) if kind in groups}
    else:
        groups = dict(sorted(groups.items(), key=lambda item: -total(item[1]).middle))
    measured = row.module_times if by == "module" else None
    shown = list(groups.items())
    rows = [_group_cells(name, calls, row, measured) for name, calls in shown[:MOST_ROWS]]
    if len(shown) > MOST_ROWS:
        others = [call for _, calls in shown[MOST_ROWS:] for call in calls]
        rest = {ITSELF: sum((measured or {}).get(name, 0.0) for name, _ in shown[MOST_ROWS:])} if measured else None
        rows.append((f"{len(shown) - MOST_ROWS} more", *_group_cells(ITSELF, others, row, rest)[1:]))
    if row.predicted.rest.middle and not measured:
        rest_s = row.predicted.rest.middle
        share = percent(rest_s / row.predicted.total.middle)
        rows.append(("views, Python", duration(rest_s), share, OVERHEAD, "–", "–", "–"))
    columns = (by.capitalize(), "Predicted", "Share", "bound", "FLOP/s", "bytes/s", "Calls")
    extra = ("Measured", "Error") if measured else ()
    return Table(f"Predicted time by {by} at {row.resolution}", (*columns, *extra), tuple(rows), frozenset({by.capitalize(), "bound"}))  # fmt: skip


def _group_cells(
    name: str, calls: list[CallTime], row: TimeRow, measured: Mapping[str, float] | None
) -> tuple[str, ...]:
    time_s = total(calls).middle
    by_bound = {bound: sum(call.time.middle for call in calls if call.bound == bound) for bound in BOUNDS}
    flops = 2 * sum(call.call.work.macs for call in calls)
    moved = sum(call.call.read_bytes + call.call.written_bytes for call in calls)
    cells = (
        name,
        duration(time_s),
        percent(time_s / row.predicted.total.middle),
        max(by_bound, key=lambda bound: by_bound[bound]),
        scaled(flops / time_s) if flops and time_s else "–",
        scaled(moved / time_s) if time_s else "–",
        str(len(calls)),
    )
    if measured is None:
        return cells
    seen = measured.get(name)
    return (*cells, duration(seen) if seen else "–", signed_percent(time_s / seen - 1) if seen else "–")


def turn_sentences(model: ModelTimes) -> Iterator[str]:
    """From which size on each kind is bound by arithmetic."""
    for turn in model.turns:
        sizes = list(turn.bounds)
        if turn.compute_from is None:
            yield f"{turn.kind}: not compute-bound up to {sizes[-1]}, but {turn.bounds[sizes[-1]]}-bound."
        elif turn.compute_from == sizes[0]:
            yield f"{turn.kind}: compute-bound from {sizes[0]} on, the smallest size looked at."
        else:
            before = sizes[sizes.index(turn.compute_from) - 1]
            yield f"{turn.kind}: turns compute-bound between {before} ({turn.bounds[before]}-bound) and {turn.compute_from}."


def warning_sentences(result: TimeResult) -> Iterator[str]:
    """What a reader must know before using the figures."""
    machine = result.machine
    if not machine.measured:
        yield (
            f"Not measured: every figure takes {machine.name} at its peaks, which no kernel reaches. "
            f"Assumed: {'; '.join(machine.fingerprint['assumptions'])}. Sources: {'; '.join(machine.fingerprint['sources'])}."
        )
    if machine.measured and (busy := busy_text(machine)):
        yield f"Ceilings: {busy}."
    for model in result.models:
        yield from _model_warnings(model)


def _model_warnings(model: ModelTimes) -> Iterator[str]:
    uncounted = sorted({name for row in model.rows for name in row.predicted.uncounted})
    if uncounted:
        yield f"{model.name}: the time of {', '.join(uncounted)} can't be predicted and is missing from every sum."
    likes = sorted({(call.call.operator, call.like) for row in model.rows for call in row.predicted.calls if call.like})
    if likes:
        named = ", ".join(operator for operator, _ in likes)
        yield f"{model.name}: {named} {'have' if len(likes) > 1 else 'has'} no rate of {'their' if len(likes) > 1 else 'its'} own; taken for {likes[0][1]}."
    for size, why in model.failed.items():
        yield f"{model.name} at {size}: {why}"


def accuracy_sentences(result: TimeResult) -> Iterator[str]:
    """How far predictions and measurements are apart."""
    error = result.median_absolute_error
    if error is None:
        return
    sizes, models = len(result.errors), sum(any(row.error is not None for row in model.rows) for model in result.models)
    worst = max(map(abs, result.errors))
    yield (
        f"Median absolute error {percent(error)} over {sizes} measured rows of {models} model{'s' if models > 1 else ''}, "
        f"the largest {percent(worst)}."
    )
    judged = [(model, row) for model in result.models if model.factor for row in model.rows if row.latency is not None]
    if judged:
        inside = sum(_inside(model, row) for model, row in judged)
        yield f"{inside} of {len(judged)} measured medians lie within the interval."


def _inside(model: ModelTimes, row: TimeRow) -> bool:
    interval = model.interval_s(row)
    assert row.latency is not None
    assert interval is not None
    return interval.low <= row.latency.median_s <= interval.high


def interval_sentences(result: TimeResult) -> Iterator[str]:
    """What the intervals stand on."""
    factors = sorted(model.factor for model in result.models if model.factor)
    if not factors:
        if result.machine.crowded:
            yield "No intervals: more threads wanted to run when the ceilings were measured than there are cores."
        elif result.machine.measured:
            yield "No intervals: too few times were measured of other models."
        return
    times = [each for known in result.known for each in known.ratios.items()]
    models = len({name for name, _ in times})
    wide = " to ".join(dict.fromkeys(f"{each:.2f}" for each in (factors[0], factors[-1])))
    yield (
        f"The interval is the predicted time divided and multiplied by {wide}: as near lay {percent(SHARE, 0)} of "
        f"{sum(len(ratios) for _, ratios in times)} measured times of {models} model{'s' if models > 1 else ''} on "
        f"{', '.join(each.machine for each in result.known)}. A model's own times, and its twins', don't count for it."
    )
    if all(each.machine != result.machine.name for each in result.known):
        yield "sola-profile predict --accuracy finds the interval of this machine."
