"""A kernel report as tables of text, which the terminal and the page share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from sola_profile.compare.ratios import FEWEST_ROUNDS, Ratio
from sola_profile.kernel_case import BOTH, FORWARD, KERNELS
from sola_profile.kernel_result import KernelReport, KernelRow, RouteResult
from sola_profile.measure.statistics import Interval
from sola_profile.report.numbers import doubts_text, duration, missing_text, percent, significant, whole
from sola_profile.report.tables import Table

NONE = "–"
THREADS = "Thr."
TRIED = "softmax / linear at N"
# runnable threads before the run from which on something else was running
BUSY_LOAD = 0.5

_Group = tuple[str, str, tuple[KernelRow, ...]]


def groups(report: KernelReport) -> list[_Group]:
    """(operator, mode, rows) in the order in which they ran."""
    found: dict[tuple[str, str], list[KernelRow]] = {}
    for row in report.rows:
        found.setdefault((row.case.op, row.case.mode), []).append(row)
    return [(op, mode, tuple(rows)) for (op, mode), rows in found.items()]


def backend_table(report: KernelReport) -> Table:
    """What runs, and why the others don't."""
    rows = tuple(
        (backend.kind, backend.name, "runs" if backend.chosen else f"no: {backend.reason}")
        for backend in report.backends
    )
    return Table(
        "Backends of the compiled operators", ("What", "Backend", "Runs"), rows, frozenset(("What", "Backend", "Runs"))
    )


def ceiling_table(report: KernelReport) -> Table:
    """The measured ceilings."""
    rows = []
    for ceilings in report.ceilings.values():
        threads = whole(ceilings.threads)
        for dtype, gemm in ceilings.gemm.items():
            rows.append((threads, f"GEMM {dtype}, torch.matmul", f"{significant(gemm.matmul / 1e9)} GFLOP/s"))
            rows.append((threads, f"GEMM {dtype}, our tiles in cache", f"{significant(gemm.tiles / 1e9)} GFLOP/s"))
        rows.append((threads, "copy, read and written", f"{significant(ceilings.copy_bytes_per_s / 1e9)} GB/s"))
        rows.append((threads, "exp float32", f"{significant(ceilings.exp_per_s / 1e9)} G/s"))
    return Table("Measured ceilings", (THREADS, "Ceiling", "Rate"), tuple(rows), frozenset({"Ceiling"}))


def summary_table(report: KernelReport) -> Table:
    """Per operator, mode and peer: median and range of the ratios over shapes and threads."""
    dtypes = list(dict.fromkeys(row.case.dtype for row in report.rows))
    rows = []
    for op, mode, members in groups(report):
        for name in _peer_names(members):
            cells = [_spread(members, name, dtype) for dtype in dtypes]
            rows.append((op, mode, name, *cells))
    left = frozenset({"Operator", "Mode", "Peer"})
    return Table("Time of the peer over ours: median (range)", ("Operator", "Mode", "Peer", *dtypes), tuple(rows), left)


def _spread(rows: Sequence[KernelRow], name: str, dtype: str) -> str:
    values = [
        peer.ratio.value
        for row in rows
        if row.case.dtype == dtype
        for peer in row.peers
        if peer.name == name and peer.ratio
    ]
    if not values:
        return NONE
    if len(values) == 1:
        return _times(values[0])
    return f"{_times(median(values))} ({_times(min(values))} – {_times(max(values))})"


def speed_table(op: str, mode: str, rows: Sequence[KernelRow]) -> Table:
    """Our time, and for every peer its time over ours; ± is the half width of a 95 % interval, ≈ too few rounds."""
    names = _peer_names(rows)
    cells = []
    for row in rows:
        ratios = [_ratio_cell(_named(row, name)) for name in names]
        cells.append((*_head(row), *_time_cells(row.ours), *ratios, _remark(row)))
    columns = ("Shape", "dtype", THREADS, "Ours", "±", *(f"{name} / ours" for name in names), "")
    return Table(f"{op}, {mode}", columns, tuple(cells), frozenset({"Shape", "dtype", ""}))


def share_table(report: KernelReport, op: str, mode: str, rows: Sequence[KernelRow]) -> Table:
    """What our operator reaches of the machine's ceilings, and its error beside the smallest of its peers."""
    cells = []
    for row in rows:
        found = report.shares(row)
        rates = [NONE] * 5
        if found is not None:
            products = (
                [f"{significant(found.flops_per_s / 1e9)}", percent(found.gemm, 0)] if row.work.macs else [NONE] * 2
            )
            floor = percent(found.floor, 0) if found.floor else NONE
            rates = [*products, significant(found.bytes_per_s / 1e9), percent(found.copy, 0), floor]
        errors = [peer.error for peer in row.peers if peer.error is not None]
        cells.append(
            (*_head(row), *rates, _error(row.ours.error), _error(min(errors, default=None)), _to_forward(report, row))
        )
    columns = (
        *("Shape", "dtype", THREADS, "GFLOP/s", "of GEMM", "GB/s", "of copy", "floor"),
        "Error",
        "Peers'",
        "/ fwd",
    )
    table = Table(f"{op}, {mode}: ceilings and errors", columns, tuple(cells), frozenset({"Shape", "dtype"}))
    return table if mode == BOTH else table.without("/ fwd")


def remarks(rows: Sequence[KernelRow]) -> Iterator[str]:
    """Why peers are missing, once for every shape and peer."""
    said = set()
    for row in rows:
        for route in row.routes:
            if route.missing is not None:
                line = f"{row.case.shape} {row.case.dtype} {route.name}: {missing_text(route.missing)}"
                if line not in said:
                    said.add(line)
                    yield line


def crossover_table(report: KernelReport) -> Table:
    """Where linear attention overtakes softmax attention."""
    rows = []
    for found in report.crossovers:
        measured = NONE if found.tokens is None else whole(round(found.tokens))
        interval = NONE if found.interval is None else _tokens(found.interval)
        tried = ", ".join(f"{tokens}: {_times(ratio.value)}" for tokens, ratio in sorted(found.points))
        which = (whole(found.dim), found.dtype, found.mode, whole(found.threads))
        rows.append((*which, measured, interval, whole(round(found.analytical_tokens)), tried))
    columns = ("D", "dtype", "Mode", THREADS, "N measured", "95 % interval", "N by FLOPs", TRIED)
    left = frozenset({"dtype", "Mode", TRIED})
    return Table("Where linear attention overtakes softmax attention", columns, tuple(rows), left)


def model_table(report: KernelReport) -> Table:
    """Whole models with our operators and with PyTorch's."""
    rows = []
    for row in report.models:
        ours, peer = (NONE if latency is None else duration(latency.median_s) for latency in (row.ours, row.peer))
        ratio = NONE if row.ratio is None else _with_half_width(row.ratio)
        which = (row.model, row.resolution, row.dtype, whole(row.threads))
        rows.append((*which, ours, peer, ratio, _error(row.difference)))
    columns = ("Model", "Size", "dtype", THREADS, "Ours", "PyTorch", "PyTorch / ours", "Difference")
    return Table("Forward pass of whole models", columns, tuple(rows), frozenset({"Model", "dtype"}))


def model_remarks(report: KernelReport) -> Iterator[str]:
    """Why models are missing."""
    for row in report.models:
        if row.missing is not None:
            yield f"{row.model} at {row.resolution} {row.dtype}: {missing_text(row.missing)}"


def headline(report: KernelReport) -> str:
    """What ran, in one line."""
    chosen = ", ".join(f"{backend.kind}: {backend.name}" for backend in report.backends if backend.chosen)
    return f"{report.environment.cpu}, PyTorch {report.environment.torch}; {chosen}"


def busy_sentence(report: KernelReport) -> str:
    """A warning when other programs ran before ours, else nothing."""
    load = report.environment.load_1min
    if load <= BUSY_LOAD:
        return ""
    return f"Load before the run {load:.1f}: something else was running, and times with all threads suffer most."


def descriptions(rows: Sequence[KernelRow]) -> list[tuple[str, str]]:
    """(name, what it is) of an operator's routes."""
    return list({route.name: (route.name, route.what) for row in rows for route in row.routes}.values())


def meaning(op: str) -> str:
    """What an operator computes."""
    return KERNELS[op]


def _head(row: KernelRow) -> tuple[str, str, str]:
    return str(row.case.shape), row.case.dtype, whole(row.case.threads)


def _peer_names(rows: Sequence[KernelRow]) -> list[str]:
    """Those that have a ratio anywhere; ``remarks`` says why the others have none."""
    return list(dict.fromkeys(peer.name for row in rows for peer in row.peers if peer.ratio))


def _named(row: KernelRow, name: str) -> RouteResult | None:
    return next((peer for peer in row.peers if peer.name == name), None)


def _time_cells(route: RouteResult) -> tuple[str, str]:
    if route.latency is None:
        return NONE, NONE
    latency = route.latency
    if len(set(latency.rounds)) < FEWEST_ROUNDS:
        return duration(latency.median_s), NONE
    return duration(latency.median_s), percent(latency.interval_s.relative_half_width(latency.median_s), 1)


def _ratio_cell(peer: RouteResult | None) -> str:
    return NONE if peer is None or peer.ratio is None else _with_half_width(peer.ratio)


def _with_half_width(ratio: Ratio) -> str:
    if ratio.interval is None:
        return f"≈ {_times(ratio.value)}"
    half = (ratio.interval.high - ratio.interval.low) / 2
    digits = 2 if ratio.value < 100 else 0
    return f"{_times(ratio.value)} ± {half:.{digits}f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 100 else whole(round(ratio))


def _error(error: float | None) -> str:
    return NONE if error is None else f"{error:.1e}"


def _tokens(interval: Interval) -> str:
    return f"{interval.low:.0f} – {interval.high:.0f}"


def _remark(row: KernelRow) -> str:
    return doubts_text(row.ours.latency) if row.ours.latency is not None else ""


def _to_forward(report: KernelReport, row: KernelRow) -> str:
    """Time of forward and backward over the time of the forward of the same case."""
    same: Callable[[KernelRow], bool] = lambda other: (  # noqa: E731
        other.case.mode == FORWARD
        and (other.case.op, other.case.shape, other.case.dtype, other.case.threads)
        == (row.case.op, row.case.shape, row.case.dtype, row.case.threads)
    )
    forward = next((other.ours.latency for other in report.rows if same(other)), None)
    if forward is None or row.ours.latency is None:
        return NONE
    return _times(row.ours.latency.median_s / forward.median_s)
