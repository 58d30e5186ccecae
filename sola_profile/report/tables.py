"""A profile as tables of text, which every written report shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from sola_profile.compare.witnesses import Agreement
from sola_profile.report.numbers import (
    doubts_text,
    duration,
    duration_interval,
    exact,
    mebibytes,
    missing_text,
    percent,
    residual,
    scaled,
    signed_percent,
    significant,
    times,
    whole,
)
from sola_profile.result import Contender, Profile, Row

# kinds as they are shown: both ways of making tokens stand together
SHOWN_KINDS: Mapping[str, tuple[str, ...]] = {
    "softmax": ("softmax",),
    "linear": ("linear",),
    "channel mix": ("channel mix",),
    "embed, merge": ("embedding", "merging"),
    "bridge": ("bridge",),
    "head": ("head",),
}

OPTIMIZER_NAMES: Mapping[str, str] = {"sgd": "SGD with momentum", "adamw": "AdamW"}

# predicted and measured memory are called equal up to here
CLOSE_MEMORY = 0.02

ROLE_NAMES: Mapping[str, str] = {"linear": "all linear", "softmax": "all softmax"}


@dataclass(frozen=True)
class Table:
    """Cells are text; all columns but the ``left`` ones align to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[str] = frozenset()

    def without(self, column: str) -> Table:
        """The same table with one column less."""
        place = self.columns.index(column)

        def cut(cells: tuple[str, ...]) -> tuple[str, ...]:
            return cells[:place] + cells[place + 1 :]

        return replace(self, columns=cut(self.columns), rows=tuple(map(cut, self.rows)))


def shown_kinds(profile: Profile) -> Mapping[str, tuple[str, ...]]:
    """Kinds of layers of a backbone, or those kinds of products that another model has."""
    if profile.model.spec is not None:
        return SHOWN_KINDS
    sums = [row.cost.macs_by_kind for row in profile.model.rows]
    return {kind: (kind,) for kind in sums[0] if any(macs[kind] for macs in sums)}


def contender_name(contender: Contender) -> str:
    """The name of the model, or what its twin is."""
    return ROLE_NAMES.get(contender.role, contender.name)


def size_name(row: Row) -> str:
    """``224``, with a star where padding added tokens."""
    return f"{row.resolution}{'*' if row.case.padded else ''}"


def work_table(profile: Profile) -> Table:
    """Tokens, matrix products and what their witnesses say of them, scalar operations."""
    rows = tuple(
        (
            size_name(row),
            "/".join(whole(count) for count in row.tokens_per_stage),
            significant(row.cost.macs / 1e9, 4),
            significant(2 * row.cost.macs / 1e9, 4),
            _verdict(row),
            significant(sum(row.cost.scalar_ops.values()) / 1e9, 3),
        )
        for row in profile.model.rows
    )
    tokens = "Positions" if profile.model.spec is None else "Tokens per stage"
    columns = ("Size", tokens, "GMACs", "GFLOPs", "Witnesses", "Scalar Gops")
    return Table("Work of the forward pass", columns, rows, frozenset({"Witnesses"}))


def _verdict(row: Row) -> str:
    if row.agreement is None:
        return "not asked"
    found = row.agreement
    if not found.exact:
        return f"differ ({len({difference.piece for difference in found.differences})})"
    if found.reference in found.blind:
        return f"{', '.join(found.blind)} blind"
    blind = f", {len(found.blind)} blind" if found.blind else ""
    absent = f", {len(found.absent)} absent" if found.absent else ""
    return f"{len(found.macs) - len(found.blind)} agree{blind}{absent}"


def witness_table(profile: Profile) -> Table:
    """Every witness's count in full."""
    counters = [name for row in profile.model.rows if row.agreement for name in row.agreement.macs]
    names = list(dict.fromkeys(counters)) or [profile.model.rows[0].cost.origin]
    rows = tuple(
        (size_name(row), *(_witness_cell(row.agreement, name) for name in names))
        for row in profile.model.rows
        if row.agreement is not None
    )
    return Table("Multiply-accumulates by witness", ("Size", *names), rows)


def residual_table(profile: Profile) -> Table:
    """Every witness against the reference, kind by kind, with a verdict; and predicted memory against measured."""
    rows = [line for row in profile.model.rows for line in (*_work_residuals(row), *_memory_residuals(row))]
    columns = ("Size", "What", "Witness", "Counted", "Expected", "Residual", "Verdict")
    return Table("Residuals", columns, tuple(rows), frozenset({"What", "Witness", "Verdict"}))


def _work_residuals(row: Row) -> Iterator[tuple[str, ...]]:
    found = row.agreement
    if found is None:
        return
    for kind, macs in found.by_kind.items():
        expected = macs[found.reference]
        for name, value in macs.items():
            if name == found.reference or value == expected == 0:
                continue
            verdict = "agrees"
            if value != expected:
                less = name if value < expected else found.reference
                blind, whose = found.blind.get(less, ()), "" if less == name else f"{less} "
                verdict = f"{whose}blind to {', '.join(blind)}" if blind else "one of the two is wrong"
            figures = (whole(value), whole(expected), whole(value - expected))
            yield (str(row.resolution), f"MACs of {kind}", name, *figures, verdict)


def _memory_residuals(row: Row) -> Iterator[tuple[str, ...]]:
    predicted, seen = row.predicted_memory.step_bytes, row.measured_memory
    if seen is not None:
        off = seen.step_bytes / predicted - 1 if predicted else 0.0
        verdict = "agrees" if abs(off) <= CLOSE_MEMORY else "differs"
        figures = (mebibytes(seen.step_bytes), mebibytes(predicted), signed_percent(off))
        yield (str(row.resolution), "memory of a step", "allocator", *figures, verdict)


def _witness_cell(found: Agreement, name: str) -> str:
    if name not in found.macs:
        return "–"
    return f"{whole(found.macs[name])}{' (blind)' if name in found.blind else ''}"


def difference_table(profile: Profile) -> Table | None:
    """Where the witnesses part; None while they agree."""
    rows = tuple(
        (size_name(row), part.witness, part.piece, whole(part.macs), whole(part.expected_macs), whole(part.residual))
        for row in profile.model.rows
        if row.agreement is not None
        for part in row.agreement.differences
    )
    columns = ("Size", "Witness", "Piece", "MACs", "Expected", "Residual")
    return Table("Where the witnesses differ", columns, rows, frozenset({"Witness", "Piece"})) if rows else None


def latency_table(profile: Profile) -> Table:
    """Median, interval, throughput, the predicted time where there is one, and what speaks against them."""
    predicted = any(row.predicted_time for row in profile.model.rows)
    rows = tuple(
        (size_name(row), *_latency_cells(row), *(_predicted_cells(row) if predicted else ()), _remark(row))
        for row in profile.model.rows
    )
    columns = (
        "Size",
        "Latency",
        "95 % interval",
        "Runs",
        "GFLOP/s",
        *(("Predicted", "Error") if predicted else ()),
        "",
    )
    return Table("Measured latency", columns, rows, frozenset({""}))


def _latency_cells(row: Row) -> tuple[str, str, str, str]:
    if row.latency is None:
        return "–", "–", "–", "–"
    macs = row.cost.macs if row.step_macs is None else row.step_macs
    return (
        duration(row.latency.median_s),
        duration_interval(row.latency.interval_s),
        whole(len(row.latency.samples_s)),
        significant(2 * macs / row.latency.median_s / 1e9),
    )


def _predicted_cells(row: Row) -> tuple[str, str]:
    if row.predicted_time is None:
        return "–", "–"
    time_s = row.predicted_time.middle
    return duration(time_s), "–" if row.latency is None else signed_percent(time_s / row.latency.median_s - 1)


def _remark(row: Row) -> str:
    if row.latency is not None:
        return doubts_text(row.latency)
    return missing_text(row.missing) if row.missing is not None else ""


def memory_table(profile: Profile) -> Table:
    """What the predicted peak is made of, and how much of it was measured."""
    rows = []
    for row in profile.model.rows:
        peak, seen = row.predicted_memory, row.measured_memory
        rows.append(
            (
                size_name(row),
                mebibytes(peak.parameter_bytes),
                mebibytes(peak.optimizer_bytes),
                mebibytes(peak.input_bytes),
                mebibytes(peak.gradient_bytes),
                mebibytes(peak.step_bytes),
                "–" if seen is None else mebibytes(seen.step_bytes),
                "–" if seen is None else residual(peak.step_bytes, seen.step_bytes),
                mebibytes(peak.total_bytes),
                peak.at,
            )
        )
    before = ("Size", "Parameters", "Optimizer", "Input", "Gradients")
    columns = (*before, "Step", "measured", "residual", "Total", "Peak at")
    table = Table("Peak memory, predicted and measured", columns, tuple(rows), frozenset({"Peak at"}))
    if profile.settings.mode == "train":
        return table if profile.settings.optimizer != "none" else table.without("Optimizer")
    return table.without("Optimizer").without("Gradients")


def kinds_table(profile: Profile) -> Table:
    """Share of each kind of layer in the matrix products, and in the measured time."""
    rows, shown = [], shown_kinds(profile)
    for row in profile.model.rows:
        macs = row.cost.macs_by_kind
        shares = [sum(macs[kind] for kind in kinds) / max(1, row.cost.macs) for kinds in shown.values()]
        rows.append((size_name(row), "MACs", *map(percent, shares)))
        if row.kind_times is not None:
            timed = row.kind_times.shares
            rows.append(("", "time", *(percent(sum(timed[kind] for kind in kinds)) for kinds in shown.values())))
    what = "layer" if profile.model.spec is not None else "product"
    return Table(f"Share of each kind of {what}", ("Size", "of", *shown), tuple(rows), frozenset({"of"}))


def polynomial_table(contender: Contender) -> Table | None:
    """The exact coefficients, per kind; None where they are no such polynomials."""
    complexity = contender.scaling.complexity
    if complexity is None:
        return None
    groups = SHOWN_KINDS if contender.spec is not None else {kind: (kind,) for kind in complexity.by_kind}
    rows = []
    for name, kinds in groups.items():
        parts = [complexity.by_kind[kind] for kind in kinds]
        whole_kind = parts[0]
        for part in parts[1:]:
            whole_kind += part
        rows.append((name, exact(whole_kind.a), exact(whole_kind.b), exact(whole_kind.c)))
    total = complexity.total
    rows.append(("all", exact(total.a), exact(total.b), exact(total.c)))
    title = "MACs of one image = a·N² + b·N + c"
    return Table(title, ("Kind", "a", "b", "c"), tuple(rows), frozenset({"Kind"}))


def pieces_table(profile: Profile) -> Table:
    """Every piece of the model at every size."""
    rows = []
    for row in profile.model.rows:
        for piece in row.cost.pieces:
            share = percent(piece.macs / max(1, row.cost.macs))
            scalars = sum(piece.scalar_ops.values())
            figures = (whole(piece.macs), share, whole(scalars), whole(piece.parameters))
            rows.append((str(row.resolution), piece.name, piece.kind, *figures))
    columns = ("Size", "Piece", "Kind", "MACs", "of all", "Scalar ops", "Parameters")
    return Table("Every piece", columns, tuple(rows), frozenset({"Piece", "Kind"}))


def comparison_table(profile: Profile) -> Table | None:
    """The model and the others, size by size; None when there are none."""
    if len(profile.contenders) == 1:
        return None
    rows = []
    for row in profile.model.rows:
        for contender in profile.contenders:
            other = contender.row_at(row.resolution)
            if other is not None:
                rows.append(_comparison_row(row, other, contender))
    columns = ("Size", "Model", "GMACs", "to model", "Latency", "to model", "Peak predicted", "")
    names = [contender_name(contender) for contender in profile.contenders[1:]]
    return Table(
        f"Beside {' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}",
        columns,
        tuple(rows),
        frozenset({"Model", ""}),
    )


def _comparison_row(model: Row, row: Row, contender: Contender) -> tuple[str, ...]:
    latency = "–" if row.latency is None else duration(row.latency.median_s)
    ratio = "–"
    if row.latency is not None and model.latency is not None:
        ratio = times(row.latency.median_s / model.latency.median_s)
    return (
        size_name(row) if row is model else "",
        contender_name(contender),
        significant(row.cost.macs / 1e9, 4),
        times(row.cost.macs / model.cost.macs) if model.cost.macs else "–",
        latency,
        ratio,
        mebibytes(row.predicted_memory.total_bytes),
        _remark(row),
    )


def headline(profile: Profile) -> str:
    """What ran: model, pattern, parameters and settings in one line."""
    model, settings = profile.model, profile.settings
    pattern = "" if model.spec is None else f"  {model.spec.pattern}"
    parameters = scaled(profile.model.rows[0].cost.parameters)
    device = (
        f"{settings.device}, {profile.environment.threads} threads"
        if settings.device_type == "cpu"
        else settings.device
    )
    mode = "inference" if settings.mode == "infer" else "forward and backward"
    mode += "" if settings.optimizer == "none" else f", {OPTIMIZER_NAMES[settings.optimizer]}"
    mode += ", checkpointed" if settings.checkpointing else ""
    compiled = ", compiled" if settings.compile else ""
    return f"{model.name}{pattern}  {parameters} parameters  batch {settings.batch}, {settings.dtype}, {device}, {mode}{compiled}"
