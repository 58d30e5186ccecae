"""A model's formula as tables and sentences of text, which every written report shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sola_profile.cost.breakdown import FORMULAS
from sola_profile.cost.expression import Expression, Letters, monomial
from sola_profile.cost.recording import Call
from sola_profile.cost.symbolic import COUNTED, FEWEST_STRIDES, INTERPOLATED, PROVED, ModelFormula, Totals, grouped
from sola_profile.cost.work import PRODUCT_KINDS, Size
from sola_profile.formula_result import FormulaResult, SizeRow
from sola_profile.report.numbers import (
    exact,
    mebibytes,
    percent,
    polynomial_text,
    residual,
    scaled,
    significant,
    whole,
)
from sola_profile.report.tables import Table

# rows of a table by module or operator; the rest is one line
MOST_ROWS = 40
OTHERS = "no products"


def headline(result: FormulaResult) -> str:
    """What was looked at."""
    formula = result.formula
    recording = formula.recording or (result.rows[0].recording if result.rows else None)
    parameters = f"  {scaled(recording.parameters)} parameters" if recording else ""
    return f"{formula.source.name}{parameters}  input {formula.shape}, {formula.dtype}, forward"


def route_sentence(formula: ModelFormula) -> str:
    """Which way the polynomials were found, and why not a better one."""
    took = f"in {significant(formula.took_s, 2)} s"
    if formula.route == COUNTED:
        return f"No polynomial was found {took}: {formula.why.rstrip('.')}. Every size is counted by itself."
    if formula.route == INTERPOLATED:
        images = "square sizes" if formula.square else "sizes, square and not,"
        built = ", the model built anew for each" if formula.sized else ""
        return (
            f"Interpolated through three sizes and confirmed exactly on three further {images} {took}{built}, "
            f"used from {PROVED[0] * formula.stride} to {PROVED[1] * formula.stride} pixels a side. Not symbolic, since {formula.why.rstrip('.')}."
        )
    return f"Symbolic: one pass with H = {formula.stride}·h and W = {formula.stride}·w, {took}."


def expressions(result: FormulaResult) -> dict[str, Expression]:
    """The model's totals by name, MACs first; empty without a formula."""
    whole_model = result.formula.total
    if whole_model is None:
        return {}
    quantities = {
        "MACs": whole_model.macs,
        "FLOPs": 2 * whole_model.macs,
        "scalar ops": whole_model.all_scalar_ops,
        "bytes read": whole_model.read_bytes,
        "bytes written": whole_model.written_bytes,
    }
    return {name: Letters(result.formula, [value]).express(value) for name, value in quantities.items()}


def formula_sentences(result: FormulaResult) -> Iterator[str]:
    """The totals as formulas, and what their letters mean."""
    found = expressions(result)
    if not found:
        return
    width = max(map(len, found))
    for name, expression in found.items():
        yield f"{name:<{width}} = {polynomial_text(expression)}"
    assert result.formula.total is not None
    yield f"{Letters(result.formula, [result.formula.total.macs]).definition}."


def latex(result: FormulaResult) -> str:
    """The totals as an ``align*`` environment."""
    import sympy

    lines = [
        rf"\mathrm{{{name.replace(' ', r'~')}}} &= {sympy.latex(expression.sympy())}"
        for name, expression in expressions(result).items()
    ]
    return "\\begin{align*}\n" + " \\\\\n".join(lines) + "\n\\end{align*}\n"


def by_module(calls: Sequence[Call], depth: int) -> dict[str, Totals]:
    """Totals per module, paths cut to ``depth`` parts."""
    return grouped(calls, lambda call: ".".join(call.module.split(".")[:depth]) or "(itself)")


def groups(result: FormulaResult, key: str, depth: int) -> dict[str, Totals]:
    """Polynomials by kind of product, module or operator, or of the first counted size where there are none."""
    recording = result.formula.recording or result.rows[0].recording
    if key == "module":
        return by_module(recording.calls, depth)
    if key == "operator":
        return grouped(recording.calls, lambda call: call.operator)
    found = grouped(recording.calls, lambda call: call.kind if call.kind in PRODUCT_KINDS else OTHERS)
    return {kind: found[kind] for kind in (*PRODUCT_KINDS, OTHERS) if kind in found}


def group_table(result: FormulaResult, key: str, depth: int = 1) -> Table | None:
    """MACs of each group as coefficients, and its share at every size; None when there is nothing to show."""
    if result.formula.recording is None and not result.rows:
        return None
    found = groups(result, key, depth)
    if key != "kind":
        found = {name: totals for name, totals in found.items() if totals.macs != 0 or totals.all_scalar_ops != 0}
    shown = dict(list(found.items())[:MOST_ROWS])
    if result.formula.recording is None:
        return _counted_table(result.rows[0], key, shown)
    letters = Letters(result.formula, [totals.macs for totals in found.values()])
    terms = {name: letters.express(totals.macs).terms for name, totals in shown.items()}
    powers = sorted({power for one in terms.values() for power in one}, key=lambda power: (-sum(power), power[::-1]))
    covered = [row for row in result.rows if row.from_formula]
    rows = [
        (
            name,
            *(exact(terms[name][power]) if power in terms[name] else "" for power in powers),
            *(percent(_at(result, totals.macs, row) / max(row.totals.macs, 1)) for row in covered),
            *(percent(_at(result, totals.moved_bytes, row) / max(row.totals.moved_bytes, 1)) for row in covered[-1:]),
        )
        for name, totals in shown.items()
    ]
    if len(found) > len(shown):
        rows.append((f"… {len(found) - len(shown)} more in the JSON", *[""] * (len(rows[0]) - 1)))
    columns = (
        key.capitalize(),
        *(monomial(letters.names, power) for power in powers),
        *(f"at {row.resolution}" for row in covered),
        *("bytes moved" for _ in covered[-1:]),
    )
    return Table(f"MACs by {key}", columns, tuple(rows), frozenset({key.capitalize()}))


def _at(result: FormulaResult, quantity: Size, row: SizeRow) -> int:
    return result.formula.value(quantity, row.resolution)


def _counted_table(row: SizeRow, key: str, found: Mapping[str, Totals]) -> Table:
    """The same at the first size, where there is no formula."""
    rows = tuple(
        (
            name,
            whole(totals.macs),
            percent(totals.macs / max(row.totals.macs, 1)),
            percent(totals.moved_bytes / max(row.totals.moved_bytes, 1)),
        )
        for name, totals in found.items()
    )
    columns = (key.capitalize(), f"at {row.resolution}", "share", "bytes moved")
    return Table(f"MACs by {key}", columns, rows, frozenset({key.capitalize()}))


def size_table(result: FormulaResult) -> Table | None:
    """Figures of every size, and what the witnesses say of them."""
    rows = tuple(
        (
            str(row.resolution),
            significant(row.totals.macs / 1e9, 4),
            significant(2 * row.totals.macs / 1e9, 4),
            significant(row.totals.all_scalar_ops / 1e9, 3),
            mebibytes(row.totals.read_bytes),
            mebibytes(row.totals.written_bytes),
            "formula" if row.from_formula else "counted",
            verdict(row),
        )
        for row in result.rows
    )
    columns = ("Size", "GMACs", "GFLOPs", "Scalar Gops", "Read", "Written", "from", "Witnesses")
    return Table("Figures of each size", columns, rows, frozenset({"from", "Witnesses"})) if rows else None


def memory_table(result: FormulaResult) -> Table | None:
    """What the predicted peak of every size is made of, and how much of it was measured where that was asked."""
    asked = any(row.measured_memory or row.unmeasured for row in result.rows)
    rows = tuple(_memory_cells(row, asked) for row in result.rows)
    measured = ("measured", "residual") if asked else ()
    columns = ("Size", "Parameters", "Input", "Activations", *measured, "Total", "Peak at", "")
    title = "Peak memory of the forward pass, predicted" + (" and measured" if asked else "")
    return Table(title, columns, rows, frozenset({"Peak at", ""})) if rows else None


def _memory_cells(row: SizeRow, asked: bool) -> tuple[str, ...]:
    peak, seen = row.memory, row.measured_memory
    measured = []
    if asked:
        off = "–" if seen is None else residual(peak.step_bytes, seen.step_bytes)
        measured = ["–" if seen is None else mebibytes(seen.step_bytes), off]
    return (
        str(row.resolution),
        mebibytes(peak.parameter_bytes),
        mebibytes(peak.input_bytes),
        mebibytes(peak.step_bytes),
        *measured,
        mebibytes(peak.total_bytes),
        peak.at,
        f"not measured: {row.unmeasured}" if row.unmeasured else "",
    )


def memory_sentences(result: FormulaResult) -> Iterator[str]:
    """The peak as the highest of a few polynomials, and the largest image that fits."""
    recording = result.formula.recording
    if recording is not None and recording.moments:
        letters = Letters(result.formula, [size for _, size in recording.moments])
        shown = [f"{polynomial_text(letters.express(size))} ({place})" for place, size in recording.moments]
        of = "the highest of: " if len(shown) > 1 else ""
        yield f"Bytes of activations at the peak = {of}{'; '.join(shown)}."
    fit = result.fit
    if fit is None:
        return
    smallest = FEWEST_STRIDES * result.formula.stride
    if fit.resolution is None or fit.memory is None:
        yield f"In {_large(fit.limit_bytes)} not even {smallest} × {smallest} pixels fit."
        return
    yield (
        f"In {_large(fit.limit_bytes)} the largest square image that fits is {fit.resolution}, with "
        f"{_large(fit.memory.total_bytes)} at the peak ({fit.memory.at})."
    )
    if fit.measured_memory is not None:
        fits = "fits" if fit.measured_memory.total_bytes <= fit.limit_bytes else "does not fit"
        yield f"A real run there took {_large(fit.measured_memory.total_bytes)}: it {fits}."
    elif fit.unmeasured:
        yield f"It was not tried: {fit.unmeasured}."


def _large(size_bytes: int) -> str:
    """Memory with enough digits to tell sizes from limits."""
    whole_gibibytes = size_bytes >= 2**30
    return f"{significant(size_bytes / 2 ** (30 if whole_gibibytes else 20), 4)} {'GiB' if whole_gibibytes else 'MiB'}"


def verdict(row: SizeRow) -> str:
    """What all witnesses of one size say together."""
    asked = {name for check in row.checks for name in check.macs if name != FORMULAS}
    if not asked:
        return "none could count"
    against = sorted({name for check in row.checks for name in check.contradicted_by})
    if against:
        return f"differ: {', '.join(against)}"
    blind = sorted({name for check in row.checks for name in check.blind})
    if FORMULAS in blind:
        return f"{', '.join(blind)} blind"
    seeing = len(asked - set(blind))
    return f"{seeing} agree" + (f", {', '.join(blind)} blind" if blind else "")


def witness_table(result: FormulaResult) -> Table | None:
    """Every family of products at every size in the eyes of every witness; None when none was asked."""
    names = list(dict.fromkeys(name for row in result.rows for check in row.checks for name in check.macs))
    rows = []
    for row in result.rows:
        for number, check in enumerate(row.checks):
            if not any(check.macs.values()):
                continue
            cells = [whole(check.macs[name]) if name in check.macs else "–" for name in names]
            remark = "; ".join(_remarks(check.blind, check.contradicted_by, check.residuals))
            rows.append((str(row.resolution) if number == 0 else "", check.family, *cells, remark))
    columns = ("Size", "Products", *names, "")
    title = "Multiply-accumulates by witness"
    return Table(title, columns, tuple(rows), frozenset({"Products", ""})) if rows else None


def _remarks(
    blind: Mapping[str, Sequence[str]], contradicted_by: Sequence[str], residuals: Mapping[str, int]
) -> Iterator[str]:
    for name, operators in blind.items():
        verb = "are" if name == FORMULAS else "is"
        yield f"{name} {verb} blind to {', '.join(operator.removeprefix('aten::') for operator in operators)}"
    for name in contradicted_by:
        yield f"{name} differs by {residuals[name]:+,}: one formula is wrong"


def coverage_sentence(result: FormulaResult) -> str:
    """How much of the traffic belongs to operators whose work is known."""
    share, unknown = result.coverage.share, result.coverage.unknown
    # 99.99 % must not read 100 % while something is missing
    shown = "100 %" if not unknown else f"{int(share * 10_000) / 100:.2f} %"
    known = f"Coverage: {shown} of the bytes moved belong to operators whose work is known"
    return f"{known}; not known: {', '.join(unknown)}." if unknown else f"{known}."


def missing_sentences(result: FormulaResult) -> Iterator[str]:
    """Witnesses that gave no count, and sizes that the model refused."""
    for name in dict.fromkeys(name for row in result.rows for name in row.missing):
        reasons = dict.fromkeys(row.missing[name] for row in result.rows if name in row.missing)
        yield f"{name} could not count: {'; '.join(reasons)}."
    for size, reason in result.failed.items():
        yield f"{size}: the model refuses this size: {reason.rstrip('.')}."
