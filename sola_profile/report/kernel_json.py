"""A kernel report as JSON: every raw sample, ceilings, backends; the rules are those of ``json_file.py``.

Times of samples are per call; ``calls`` were made for each.
"""

from __future__ import annotations

from dataclasses import asdict

from sola_profile.compare.ratios import Ratio
from sola_profile.kernel_result import Crossover, KernelReport, KernelRow, ModelRow, RouteResult
from sola_profile.measure.ceilings import Ceilings
from sola_profile.report.json_parts import Json, dump, interval_json, latency_json, missing_json

SCHEMA_VERSION = 1


def kernel_json_text(report: KernelReport) -> str:
    """The document with one field to a line, and lists of numbers on one line."""
    return dump(kernel_document(report))


def kernel_document(report: KernelReport) -> Json:
    """The document as plain dicts and lists."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": report.command,
        "started": report.started,
        "interrupted": report.interrupted,
        "environment": asdict(report.environment),
        "backends": [asdict(backend) for backend in report.backends],
        "ceilings": [_ceilings(ceilings) for ceilings in report.ceilings.values()],
        "budget_s": report.budget_s,
        "rows": [_row(report, row) for row in report.rows],
        "crossovers": [_crossover(crossover) for crossover in report.crossovers],
        "models": [_model(row) for row in report.models],
    }


def _ceilings(ceilings: Ceilings) -> Json:
    return {
        "threads": ceilings.threads,
        "gemm_flops_per_s": {dtype: asdict(gemm) for dtype, gemm in ceilings.gemm.items()},
        "copy_bytes_per_s": ceilings.copy_bytes_per_s,
        "exp_per_s": ceilings.exp_per_s,
    }


def _row(report: KernelReport, row: KernelRow) -> Json:
    case, shares = row.case, report.shares(row)
    return {
        "op": case.op,
        "shape": list(case.shape.sizes),
        "dtype": case.dtype,
        "mode": case.mode,
        "threads": case.threads,
        "work": {**asdict(row.work), "flops": row.work.flops},
        "shares": None if shares is None else asdict(shares),
        "routes": [_route(route) for route in row.routes],
    }


def _route(route: RouteResult) -> Json:
    return {
        "name": route.name,
        "what": route.what,
        "calls": route.calls,
        "latency": None if route.latency is None else latency_json(route.latency),
        "ratio": _ratio(route.ratio),
        "error": route.error,
        "compile_s": route.compile_s,
        "missing": None if route.missing is None else missing_json(route.missing),
    }


def _ratio(ratio: Ratio | None) -> Json | None:
    if ratio is None:
        return None
    return {
        "value": ratio.value,
        "interval": None if ratio.interval is None else interval_json(ratio.interval),
        "by_round": list(ratio.by_round),
    }


def _crossover(crossover: Crossover) -> Json:
    return {
        "dim": crossover.dim,
        "heads": crossover.heads,
        "dtype": crossover.dtype,
        "mode": crossover.mode,
        "threads": crossover.threads,
        "analytical_tokens": crossover.analytical_tokens,
        "tokens": crossover.tokens,
        "interval": None if crossover.interval is None else interval_json(crossover.interval),
        "points": [{"tokens": tokens, "ratio": _ratio(ratio)} for tokens, ratio in crossover.points],
    }


def _model(row: ModelRow) -> Json:
    return {
        "model": row.model,
        "resolution": row.resolution,
        "dtype": row.dtype,
        "threads": row.threads,
        "ours": None if row.ours is None else latency_json(row.ours),
        "pytorch": None if row.peer is None else latency_json(row.peer),
        "ratio": _ratio(row.ratio),
        "difference": row.difference,
        "missing": None if row.missing is None else missing_json(row.missing),
    }
