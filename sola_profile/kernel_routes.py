"""From what was measured to the list of routes of softmax attention that it implies. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import groupby

from sola_profile.kernel_cuda_result import MOST_DIFFERENT, CudaReport, RouteRow, Timing
from sola_profile.kernel_targets import OWN, WHOLE_OP

SCHEMA_VERSION = 1  # of the file that SOLA_SOFTMAX_ROUTES names, see sola_vision/ops/_routes_file.py
_CPP_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True)
class Route:
    """One entry of the list; names and meanings as in ``csrc/softmax_routes.h``."""

    backend: str
    evidence: str
    lowest_capability: int
    highest_capability: int
    dtypes: tuple[str, ...]
    least_dim: int
    most_dim: int
    least_queries: int
    least_keys: int
    causal: bool

    def cpp(self) -> str:
        """The line of ``built_in`` in ``csrc/softmax_routes.cpp``."""
        dtypes = ", ".join(f"Dtype::{_CPP_DTYPES[dtype]}" for dtype in self.dtypes)
        numbers = f"{self.least_dim}, {self.most_dim}, {self.least_queries}, {self.least_keys}"
        return (
            f'{{SoftmaxBackend::{self.backend}, "{self.evidence}", {self.lowest_capability}, '
            f"{self.highest_capability}, {{{dtypes}}}, {numbers}, {str(self.causal).lower()}}},"
        )


def fastest(row: RouteRow) -> Timing | None:
    """The best of those that compute the same; ours unless another is faster by more than the target allows."""
    known = {timing.name: timing for timing in row.timings if timing.median_s is not None}
    if OWN not in known:
        return None
    most = MOST_DIFFERENT[row.case.dtype]
    # what could not be compared is not known to compute the same
    right = [it for it in known.values() if it.name == OWN or (it.difference is not None and it.difference <= most)]
    best = min(right, key=_time)
    return best if _time(best) < WHOLE_OP * _time(known[OWN]) else known[OWN]


def _time(timing: Timing) -> float:
    return timing.median_s or float("inf")


def implied_routes(report: CudaReport) -> tuple[Route, ...]:
    """The list for this device, longest sequences first; none where ours is the best that there is."""
    found: list[Route] = []
    measured = [row for row in report.routes if fastest(row) is not None]
    measured.sort(key=lambda row: (row.case.dtype, row.case.dim, row.case.causal, -row.case.tokens))
    for _, rows in groupby(measured, lambda row: (row.case.dtype, row.case.dim, row.case.causal)):
        found += _of_one_kind(rows, report)
    return tuple(found)


def _of_one_kind(rows: Iterable[RouteRow], report: CudaReport) -> list[Route]:
    entries: list[Route] = []
    for row in rows:
        entry = _entry(row, report)
        if entries and entries[-1].backend == entry.backend:
            # the longer sequences have the same backend; what speaks for both is said of both
            before = entries.pop()
            entry = replace(entry, evidence=f"{before.evidence}; {entry.evidence}")
        entries.append(entry)
    # shorter than the last entry nothing else stands in the way of ours
    return entries[:-1] if entries[-1].backend == OWN else entries


def _entry(row: RouteRow, report: CudaReport) -> Route:
    case, best = row.case, fastest(row)
    assert best is not None
    ours = next(timing for timing in row.timings if timing.name == OWN)
    major, minor = report.capability.split(".")
    capability = 10 * int(major) + int(minor)
    ratio = "ours" if best.name == OWN else f"{_time(ours) / _time(best):.2f} x ours"
    return Route(
        backend=best.name,
        evidence=f"{ratio} at {case.kernel.shape}, {report.device}, torch {report.torch}",
        lowest_capability=capability,
        highest_capability=capability,
        dtypes=(case.dtype,),
        least_dim=case.dim,
        most_dim=case.dim,
        least_queries=case.tokens,
        least_keys=case.tokens,
        causal=case.causal,
    )


def routes_json(report: CudaReport) -> str:
    """The file that ``SOLA_SOFTMAX_ROUTES`` may name."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "device": report.device,
        "torch": report.torch,
        "routes": [asdict(route) for route in implied_routes(report)],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
