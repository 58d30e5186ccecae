"""A report on the CUDA kernels as Markdown and as JSON; nothing but the standard library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from sola_profile.kernel_cuda_result import NOT_MEASURED, WITH, WITHOUT, CudaReport, FeatureRow, RouteRow, Row, Timing
from sola_profile.kernel_routes import fastest, implied_routes
from sola_profile.kernel_targets import AUTO, COPY, OWN, ROUTE_HEADS, ModelTarget

SCHEMA_VERSION = 3
REMARK = """\
Wanted and reached are shares of the measured copy bandwidth, for the least bytes that a case moves, or the peer's time over
ours, above 1 ours is faster. Times are medians by CUDA events behind a flush of the L2 cache, all routes in turn. *fla* is
`fla.ops.retention.chunk_retention`, which has neither feature map nor normaliser, and nor has ours beside it; decays are constants, of
which nobody computes a gradient. *flash_bla* is `flash_bla.ops.linear_attn.fused.linear_attention` behind the feature map in PyTorch. The JSON beside this
page has every sample.
"""
OF_SOFTMAX = {OWN: ", own kernel", AUTO: ", the op as a whole", "": ""}
FEATURES_REMARK = """\
The same call of our own kernels with a feature of compute capability 9.0 and without it (`sola_vision.ops.cuda_without`,
`SOLA_CUDA_WITHOUT`), in turn, in milliseconds. *Gain* is the time without it over the time with it: below 1 it had better not be used.
There is none where outputs or gradients differ by more than roundings explain.
"""
ROUTES_REMARK = f"""\
Forward of `sola_vision.ops.softmax_attention` at B 1, H {ROUTE_HEADS}, N = M, asked to run on each backend in turn, in milliseconds.
*Fastest* is ours unless another takes less than 98 % of its time and computes the same. The op as a whole, above, runs by the list at
the end, measured before it in the same run. Its backward is always ours, which is deterministic: nothing is wanted of it there.
"""
LIST_REMARK = """\
What follows for this device, ready for `built_in` in `csrc/softmax_routes.cpp`, and in a file beside this page that
`SOLA_SOFTMAX_ROUTES` may name:
"""
BACKENDS = {OWN: "Own", "flash": "SDPA flash", "cudnn": "SDPA cuDNN", "efficient": "SDPA efficient"}


def cuda_json(report: CudaReport) -> str:
    """Everything, with the unit of every figure in its name; null is what wasn't measured."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(report)}
    for entry, row in zip(document["rows"], report.rows, strict=True):
        entry["met"] = row.met
    for entry, feature in zip(document["features"], report.features, strict=True):
        entry["gain"] = feature.gain
    for entry, route in zip(document["routes"], report.routes, strict=True):
        best = fastest(route)
        entry["fastest"] = best.name if best else None
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def cuda_markdown(report: CudaReport, command: str) -> str:
    """The page: ceilings, then one line per target."""
    lines = [f"# CUDA kernels on {report.device}", "", f"Written by `{command}`.", ""]
    if not any(row.timings for row in report.rows):
        lines += [
            "**Nothing here has been measured: the kernels have been checked in an emulator, and not run on a GPU yet.**",
            "",
        ]
    lines += ["| What | Value |", "| :-- | --: |", *(f"| {name} | {value} |" for name, value in _machine(report)), ""]
    lines += [
        REMARK,
        "| Case | Mode | Against | Wanted | Reached | Ours | Peers |",
        "| :-- | :-- | :-- | --: | --: | --: | :-- |",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in report.rows]
    if report.features:
        lines += _features(report)
    if report.routes:
        lines += _routes(report)
    return "\n".join(lines) + "\n"


def _machine(report: CudaReport) -> Iterator[tuple[str, str]]:
    yield "torch", report.torch
    yield "CUDA of torch", report.cuda or NOT_MEASURED
    yield "compute capability", report.capability
    copy, matmul = report.copy_bytes_per_s, report.matmul_flops_per_s
    yield "copy, read and written", NOT_MEASURED if copy is None else f"{copy / 1e9:,.0f} GB/s"
    if report.features_off:
        yield "features of the device that were switched off", ", ".join(report.features_off)
    yield "bfloat16 torch.mm, 8,192³", NOT_MEASURED if matmul is None else f"{matmul / 1e12:,.0f} TFLOP/s"


def _cells(row: Row) -> Iterator[str]:
    target = row.target
    if isinstance(target, ModelTarget):
        yield f"{target.model}, {target.side}², batch {target.batch}, bfloat16"
        yield "forward"
        yield "PyTorch"
        share = False
    else:
        yield f"{target.case.op} {target.case.shape} {target.case.dtype}{OF_SOFTMAX[target.backend]}"
        yield target.case.mode
        yield target.against
        share = target.against == COPY
    yield "–" if target.wanted is None else _figure(target.wanted, share=share)
    verdict = {True: " ✓", False: " ✗", None: ""}[row.met]
    yield NOT_MEASURED if row.reached is None else _figure(row.reached, share=share) + verdict
    ours, *others = row.timings or (None,)
    yield NOT_MEASURED if ours is None or ours.median_s is None else _time(ours.median_s)
    named = (f"{peer.name} {_time(peer.median_s) if peer.median_s else peer.missing}" for peer in others)
    yield "; ".join(named).replace("|", "/") or NOT_MEASURED


def _features(report: CudaReport) -> Iterator[str]:
    yield from ("", "## Features of newer devices", "", FEATURES_REMARK)
    yield "| Feature | Case | Mode | With | Without | Gain |"
    yield "| :-- | :-- | :-- | --: | --: | --: |"
    for row in report.features:
        yield f"| {' | '.join(_feature_cells(row))} |"
    yield from _reasons(report.features)


def _feature_cells(row: FeatureRow) -> Iterator[str]:
    case = row.case.kernel
    yield from (row.case.feature, f"{case.op} {case.shape} {case.dtype}", case.mode)
    timings = {timing.name: timing for timing in row.timings}
    yield from (_milliseconds(timings.get(name)) for name in (WITH, WITHOUT))
    if row.gain is None and all(timing.samples_s for timing in row.timings) and row.timings:
        yield "results differ"
    else:
        yield NOT_MEASURED if row.gain is None else _figure(row.gain, share=False)


def _reasons(rows: Sequence[FeatureRow | RouteRow]) -> Iterator[str]:
    """Why there are cells without a figure."""
    refused = dict.fromkeys(timing.missing for row in rows for timing in row.timings if timing.missing)
    if refused:
        yield from ("", "–: " + "; ".join(refused) + ".")


def _routes(report: CudaReport) -> Iterator[str]:
    yield from ("", "## Backends of softmax attention", "", ROUTES_REMARK)
    yield f"| D | Dtype | Causal | N | {' | '.join(BACKENDS.values())} | Fastest |"
    yield f"| --: | :-- | :-- | --: |{' --: |' * len(BACKENDS)} :-- |"
    for row in report.routes:
        yield f"| {' | '.join(_route_cells(row))} |"
    yield from _reasons(report.routes)
    yield from ("", LIST_REMARK, "```cpp")
    if any(row.timings for row in report.routes):
        yield from [route.cpp() for route in implied_routes(report)] or ["// ours is the fastest everywhere"]
    else:
        yield f"// {NOT_MEASURED}"
    yield "```"


def _route_cells(row: RouteRow) -> Iterator[str]:
    case = row.case
    yield from (str(case.dim), case.dtype, "yes" if case.causal else "no", f"{case.tokens:,}")
    timings = {timing.name: timing for timing in row.timings}
    yield from (_milliseconds(timings.get(name)) for name in BACKENDS)
    best = fastest(row)
    yield BACKENDS[best.name] if best else NOT_MEASURED


def _milliseconds(timing: Timing | None) -> str:
    if timing is None:
        return NOT_MEASURED
    return "–" if timing.median_s is None else f"{timing.median_s * 1e3:.3f}"


def _figure(value: float, *, share: bool) -> str:
    return f"{100 * value:.0f} %" if share else f"{value:.2f} ×"


def _time(time_s: float) -> str:
    return f"{time_s * 1e3:.3f} ms"
