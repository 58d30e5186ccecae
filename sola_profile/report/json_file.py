"""A profile as JSON: every raw sample and every witness, in plain units that the names carry.

``schema_version`` rises when a field changes its meaning or goes; new fields may come at any time, so a reader must
ignore those it doesn't know. A missing value is null, and so is the end of an interval that has none.
"""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction

from sola_profile.compare.growth_class import GrowthClass
from sola_profile.compare.overtaking import Crossover
from sola_profile.compare.scaling import Estimate, Fit, Slope
from sola_profile.compare.witnesses import Agreement
from sola_profile.cost.breakdown import Breakdown
from sola_profile.cost.formula_cost import Growth
from sola_profile.cost.polynomial import Complexity, Polynomial
from sola_profile.memory import PeakMemory
from sola_profile.report.json_parts import Json, dump, interval_json, latency_json, missing_json, span_json
from sola_profile.result import Contender, Profile, Row
from sola_vision.spec import BackboneSpec

SCHEMA_VERSION = 2
# the name of docs/schema/profile.json, a name and no address
SCHEMA = f"urn:sola-profile:profile:{SCHEMA_VERSION}"


def json_text(profile: Profile) -> str:
    """The document with one field to a line, and lists of numbers on one line."""
    return dump(document(profile))


def document(profile: Profile) -> Json:
    """The document as plain dicts and lists."""
    return {
        "$schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "command": profile.command,
        "started": profile.started,
        "interrupted": profile.interrupted,
        "environment": asdict(profile.environment),
        "settings": asdict(profile.settings),
        "input": str(profile.shape),
        "budget_s": profile.budget_s,
        "models": [_contender(contender) for contender in profile.contenders],
        "helpful_sizes": list(profile.helpful_sizes),
        "roofs": None if profile.roofs is None else asdict(profile.roofs),
        "crossovers": [_crossover(found) for found in profile.crossovers],
    }


def _contender(contender: Contender) -> Json:
    scaling = contender.scaling
    return {
        "role": contender.role,
        "name": contender.name,
        "source": contender.source.kind,
        "input": str(contender.rows[0].case.shape),
        "patch": contender.patch,
        "spec": None if contender.spec is None else _spec(contender.spec),
        "rows": [_row(row) for row in contender.rows],
        "refused": dict(contender.refused),
        "growth": None if contender.growth is None else _growth(contender.growth),
        "complexity": None if scaling.complexity is None else _complexity(scaling.complexity),
        "macs_slopes": [_slope(slope) for slope in scaling.macs_slopes],
        "latency_fit": None if scaling.latency_fit is None else _fit(scaling.latency_fit),
        "latency_slopes": [_slope(slope) for slope in scaling.latency_slopes],
        "latency_class": None if scaling.latency_class is None else _class(scaling.latency_class),
    }


def _growth(growth: Growth) -> Json:
    """The formula of the matrix products: powers of the letters → exact coefficient, as in ``"201/64"``."""
    macs = None
    if growth.macs is not None:
        terms = [{"powers": list(powers), "coefficient": str(value)} for powers, value in growth.macs.terms.items()]
        macs = {"letters": list(growth.macs.letters), "terms": terms}
    return {
        "route": growth.route,
        "why": growth.why,
        "stride": growth.stride,
        "definition": growth.definition,
        "macs": macs,
    }


def _spec(spec: BackboneSpec) -> Json:
    return {
        "name": spec.name,
        "pattern": spec.pattern,
        "dims": list(spec.dims),
        "mixers": {letter: str(mixer) for letter, mixer in spec.mixers.items()},
        "bridges": [str(bridge) for bridge in spec.bridges],
        "head_dim": spec.head_dim,
        "mix_ratio": spec.mix_ratio,
        "shift": spec.shift,
        "patch_size": spec.patch_size,
        "in_channels": spec.in_channels,
        "num_classes": spec.num_classes,
        "drop_path": spec.drop_path,
    }


def _row(row: Row) -> Json:
    resolution = row.resolution
    return {
        "height": resolution.height,
        "width": resolution.width,
        "sized": row.case.sized,
        "tokens_per_stage": list(row.tokens_per_stage),
        "padded": row.case.padded,
        "parameters": {"expected": row.cost.parameters, "counted": row.counted_parameters},
        "cost": _cost(row.cost),
        "witnesses": None if row.agreement is None else _agreement(row.agreement),
        "training_step_macs": row.step_macs,
        "moved_bytes": row.moved_bytes,
        "predicted_memory": _memory(row.predicted_memory),
        "measured_memory": None if row.measured_memory is None else _memory(row.measured_memory),
        "latency": None if row.latency is None else latency_json(row.latency),
        "layers": [asdict(layer) for layer in row.layers],
        "predicted_time": None if row.predicted_time is None else span_json(row.predicted_time),
        "kind_times_s": None if row.kind_times is None else [dict(run) for run in row.kind_times.runs],
        "missing": None if row.missing is None else missing_json(row.missing),
        "memory_timeline": [asdict(moment) for moment in row.memory_timeline],
    }


def _cost(cost: Breakdown) -> Json:
    return {
        "origin": cost.origin,
        "macs": cost.macs,
        "flops": 2 * cost.macs,
        "macs_by_kind": cost.macs_by_kind,
        "scalar_ops": cost.scalar_ops,
        "pieces": [
            {
                "name": piece.name,
                "kind": piece.kind,
                "macs": piece.macs,
                "scalar_ops": dict(piece.scalar_ops),
                "parameters": piece.parameters,
            }
            for piece in cost.pieces
        ],
    }


def _agreement(agreement: Agreement) -> Json:
    return {
        "exact": agreement.exact,
        "reference": agreement.reference,
        "macs": dict(agreement.macs),
        "differences": [asdict(part) for part in agreement.differences],
        "uncounted": {
            witness: [asdict(entry) for entry in entries] for witness, entries in agreement.uncounted.items()
        },
        "blind": {witness: list(operators) for witness, operators in agreement.blind.items()},
        "absent": dict(agreement.absent),
        "macs_by_kind": {kind: dict(macs) for kind, macs in agreement.by_kind.items()},
    }


def _memory(peak: PeakMemory) -> Json:
    return {**asdict(peak), "total_bytes": peak.total_bytes}


def _complexity(complexity: Complexity) -> Json:
    return {
        "macs": _polynomial(complexity.total),
        "macs_by_kind": {kind: _polynomial(part) for kind, part in complexity.by_kind.items()},
        "attention_macs": _polynomial(complexity.attention),
        "softmax_overtakes_at_tokens": complexity.softmax_overtakes,
        "attention_overtakes_at_tokens": complexity.attention_overtakes,
    }


def _polynomial(polynomial: Polynomial) -> Json:
    """Coefficients as exact text: ``"201/64"``."""
    return {name: str(Fraction(value)) for name, value in asdict(polynomial).items()}


def _fit(fit: Fit) -> Json:
    return {
        "a_s": _estimate(fit.a),
        "b_s": _estimate(fit.b),
        "c_s": _estimate(fit.c),
        "freedom": fit.freedom,
        "worst_residual": fit.worst_residual,
        "quadratic_overtakes_at_tokens": None
        if fit.quadratic_overtakes is None
        else _estimate(fit.quadratic_overtakes),
    }


def _estimate(estimate: Estimate) -> Json:
    return {"value": estimate.value, "interval": interval_json(estimate.interval)}


def _slope(slope: Slope) -> Json:
    return {
        "from_tokens": slope.from_tokens,
        "to_tokens": slope.to_tokens,
        "value": slope.value,
        "interval": None if slope.interval is None else interval_json(slope.interval),
    }


def _class(found: GrowthClass) -> Json:
    return {
        "name": found.name,
        "open": list(found.open),
        "weights": dict(found.weights),
        "noise": found.noise,
        "separating_side": found.separating_side,
    }


def _crossover(found: Crossover) -> Json:
    return {
        "dearer": found.dearer,
        "cheaper": found.cheaper,
        "macs_at_tokens": found.macs_at,
        "time_at_tokens": None if found.time_at is None else _estimate(found.time_at),
        "beyond": found.beyond,
    }
