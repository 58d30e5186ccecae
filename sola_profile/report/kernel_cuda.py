"""A report on the CUDA kernels as Markdown and as JSON; nothing but the standard library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from sola_profile.kernel_cuda import NOT_MEASURED, CudaReport, Row
from sola_profile.kernel_targets import COPY, ModelTarget

SCHEMA_VERSION = 1
REMARK = """\
Wanted and reached are shares of the measured copy bandwidth, for the least bytes that a case moves, or the peer's time over
ours, above 1 ours is faster. Times are medians by CUDA events behind a flush of the L2 cache, all routes in turn. *fla* is
`fla.ops.retention.chunk_retention`, without feature map and normaliser, which ours has; decays are constants, of which nobody computes
a gradient. *flash_bla* is `flash_bla.ops.linear_attn.fused.linear_attention` behind the feature map in PyTorch. The JSON beside this
page has every sample.
"""


def cuda_json(report: CudaReport) -> str:
    """Everything, with the unit of every figure in its name; null is what wasn't measured."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(report)}
    for entry, row in zip(document["rows"], report.rows, strict=True):
        entry["met"] = row.met
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


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
    return "\n".join(lines) + "\n"


def _machine(report: CudaReport) -> Iterator[tuple[str, str]]:
    yield "torch", report.torch
    yield "CUDA of torch", report.cuda or NOT_MEASURED
    yield "compute capability", report.capability
    copy, matmul = report.copy_bytes_per_s, report.matmul_flops_per_s
    yield "copy, read and written", NOT_MEASURED if copy is None else f"{copy / 1e9:,.0f} GB/s"
    yield "bfloat16 torch.mm, 8,192³", NOT_MEASURED if matmul is None else f"{matmul / 1e12:,.0f} TFLOP/s"


def _cells(row: Row) -> Iterator[str]:
    target = row.target
    if isinstance(target, ModelTarget):
        yield f"{target.model}, {target.side}², batch {target.batch}, bfloat16"
        yield "forward"
        yield "PyTorch"
        share = False
    else:
        yield f"{target.case.op} {target.case.shape} {target.case.dtype}"
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


def _figure(value: float, *, share: bool) -> str:
    return f"{100 * value:.0f} %" if share else f"{value:.2f} ×"


def _time(time_s: float) -> str:
    return f"{time_s * 1e3:.3f} ms"
