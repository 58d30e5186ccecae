"""The other way round: a profile from the JSON that ``json_file`` writes, field for field.

Nothing is worked out anew, so a document says the same here as where it was written. A module or factory that was handed
over in Python has only its name here.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from fractions import Fraction
from math import inf, isfinite
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sola_profile.case import Case, Resolution, Settings
from sola_profile.compare.growth_class import GrowthClass
from sola_profile.compare.overtaking import Crossover
from sola_profile.compare.scaling import Estimate, Fit, Slope
from sola_profile.compare.witnesses import Agreement, Difference
from sola_profile.cost.breakdown import Breakdown, PieceCost
from sola_profile.cost.expression import Expression
from sola_profile.cost.formula_cost import Growth
from sola_profile.cost.polynomial import Complexity, Polynomial
from sola_profile.machine import Environment
from sola_profile.measure.counts import Uncounted
from sola_profile.measure.kind_times import KindTimes
from sola_profile.measure.latency import Doubt, Latency, WarmUp
from sola_profile.measure.statistics import Interval
from sola_profile.memory import Moment, PeakMemory
from sola_profile.report.json_file import SCHEMA_VERSION
from sola_profile.report.json_parts import Json, read_missing, read_span
from sola_profile.result import MODEL, Contender, LayerTime, Profile, Roofs, Row, Scaling
from sola_profile.source import InputShape, ModelSource
from sola_profile.typed import check_types, filled
from sola_vision.spec import BackboneSpec, MixerSpec

T = TypeVar("T")


def load_profile(path: str | Path) -> Profile:
    """The profile in a file; ``OSError`` when it can't be read, ``ValueError`` as from ``read_profile``."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a profile as JSON, but it is no text") from error
    return read_profile(text, str(path))


def read_profile(text: str, name: str) -> Profile:
    """The profile that a document holds; ``name`` of the file is for errors.

    Raises ``ValueError`` for what is no such document, for an unknown ``schema_version``, for a missing field, and for a
    field that holds what it can't.
    """
    try:
        document = json.loads(text, parse_constant=_refuse)
    # besides what is no JSON: numbers of thousands of digits, and lists within lists without end
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected a profile as JSON, but it is none: {error}") from error
    _check_version(document, name)
    try:
        profile = _profile(document)
        check_types(profile)
        _check_values(profile)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, SyntaxError) as error:
        what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{name}: not a profile of schema_version {SCHEMA_VERSION}: {what}") from error
    return profile


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"JSON has no {constant}")


def _check_values(profile: Profile) -> None:
    """Raise ``ValueError`` for values of the right kind that no run gives, and that a comparison would stumble over."""
    roles = [contender.role for contender in profile.contenders]
    if roles[:1] != [MODEL]:
        raise ValueError(f"models: expected the one with the role {MODEL!r} first, got {', '.join(roles) or 'none'}")
    for contender in profile.contenders:
        for row in contender.rows:
            if row.latency is not None:
                _check_latency(row.latency, f"{contender.name} at {row.resolution}")


def _check_latency(latency: Latency, where: str) -> None:
    samples, rounds = latency.samples_s, latency.rounds
    if not samples or len(samples) != len(rounds):
        raise ValueError(f"{where}: expected samples_s with a round for each, got {len(samples)} and {len(rounds)}")
    for name, value in (("median_s", latency.median_s), *(("samples_s", sample) for sample in samples)):
        if not (isfinite(value) and value > 0):
            raise ValueError(f"{where}: {name}: expected more than 0 seconds, got {value}")


def _check_version(document: Any, name: str) -> None:
    if not isinstance(document, dict) or "schema_version" not in document:
        raise ValueError(f"{name}: expected what sola-profile --json writes, but there is no schema_version")
    version = document["schema_version"]
    newer = isinstance(version, int) and version > SCHEMA_VERSION
    # other commands count their versions for themselves
    if not newer and "models" not in document:
        raise ValueError(f"{name}: expected what sola-profile profile --json writes; this is of another command")
    if version != SCHEMA_VERSION:
        advice = "a newer sola-profile reads it" if newer else "run the sweep again with this sola-profile"
        raise ValueError(f"{name}: schema_version is {version!r}, expected {SCHEMA_VERSION}; {advice}")


def _profile(document: Json) -> Profile:
    settings = _settings(document["settings"])
    return Profile(
        command=document["command"],
        started=document["started"],
        environment=filled(Environment, document["environment"]),
        settings=settings,
        shape=InputShape.parse(document["input"]),
        budget_s=document["budget_s"],
        contenders=tuple(_contender(entry, settings) for entry in document["models"]),
        helpful_sizes=tuple(document["helpful_sizes"]),
        interrupted=document["interrupted"],
        crossovers=tuple(map(_crossover, document["crossovers"])),
        roofs=None if document["roofs"] is None else filled(Roofs, document["roofs"]),
    )


def _settings(found: Json) -> Settings:
    """All of them: one that is left out, or that nobody knows, would let runs be compared that aren't alike."""
    return Settings(**{**found, **vars(filled(Settings, found))})


def _contender(found: Json, settings: Settings) -> Contender:
    spec = _optional(_spec, found["spec"])
    source = ModelSource(found["name"], found["source"], spec)
    shape = InputShape.parse(found["input"])
    return Contender(
        role=found["role"],
        source=source,
        rows=tuple(_row(row, source, shape, settings) for row in found["rows"]),
        scaling=Scaling(
            _optional(_complexity, found["complexity"]),
            _slopes(found["macs_slopes"]),
            _optional(_fit, found["latency_fit"]),
            _slopes(found["latency_slopes"]),
            _optional(_growth_class, found["latency_class"]),
        ),
        patch=found["patch"],
        growth=_optional(_growth, found["growth"]),
        refused=found["refused"],
    )


def _spec(found: Json) -> BackboneSpec:
    values = {name: found[name] for name in (field.name for field in fields(BackboneSpec))}
    values["mixers"] = {letter: _mixer(text) for letter, text in found["mixers"].items()}
    return BackboneSpec(**values)


def _mixer(text: str) -> MixerSpec:
    """``wkv(decay_per='token')`` as ``str`` of a mixer writes it."""
    node = ast.parse(text, mode="eval").body
    if not isinstance(node, ast.Call):
        return MixerSpec(text)
    options = tuple((str(option.arg), ast.literal_eval(option.value)) for option in node.keywords)
    return MixerSpec(ast.unparse(node.func), options)


def _row(found: Json, source: ModelSource, shape: InputShape, settings: Settings) -> Row:
    runs = found["kind_times_s"]
    return Row(
        case=Case(source, Resolution(found["height"], found["width"]), settings, shape, found["sized"]),
        cost=_cost(found["cost"]),
        tokens_per_stage=tuple(found["tokens_per_stage"]),
        counted_parameters=found["parameters"]["counted"],
        predicted_memory=_memory(found["predicted_memory"]),
        agreement=_optional(_agreement, found["witnesses"]),
        step_macs=found["training_step_macs"],
        moved_bytes=found.get("moved_bytes"),
        measured_memory=_optional(_memory, found["measured_memory"]),
        latency=_optional(read_latency, found["latency"]),
        kind_times=None if runs is None else KindTimes(tuple(runs)),
        missing=_optional(read_missing, found["missing"]),
        # files of before there were predictions lack it
        layers=tuple(filled(LayerTime, layer) for layer in found["layers"]),
        predicted_time=_optional(read_span, found.get("predicted_time")),
        memory_timeline=tuple(filled(Moment, moment) for moment in found["memory_timeline"]),
    )


def _cost(found: Json) -> Breakdown:
    pieces = tuple(filled(PieceCost, piece) for piece in found["pieces"])
    return Breakdown(pieces, tuple(found["macs_by_kind"]), found["origin"])


def _agreement(found: Json) -> Agreement:
    uncounted = {
        witness: tuple(filled(Uncounted, entry) for entry in entries) for witness, entries in found["uncounted"].items()
    }
    return Agreement(
        found["reference"],
        found["macs"],
        tuple(filled(Difference, part) for part in found["differences"]),
        uncounted,
        {witness: tuple(operators) for witness, operators in found["blind"].items()},
        found["absent"],
        found["macs_by_kind"],
    )


def _memory(found: Json) -> PeakMemory:
    return filled(PeakMemory, found)


def read_latency(found: Json) -> Latency:
    """What ``latency_json`` wrote."""
    return Latency(
        samples_s=tuple(found["samples_s"]),
        rounds=tuple(found["rounds"]),
        warm_up=WarmUp(tuple(found["warm_up_s"]), found["warm_up_settled"]),
        median_s=found["median_s"],
        interval_s=_interval(found["interval_s"]),
        doubts=tuple(filled(Doubt, doubt) for doubt in found["doubts"]),
    )


def _growth(found: Json) -> Growth:
    macs = None
    if found["macs"] is not None:
        terms = {tuple(term["powers"]): Fraction(term["coefficient"]) for term in found["macs"]["terms"]}
        macs = Expression(tuple(found["macs"]["letters"]), terms)
    return Growth(found["route"], found["why"], found["stride"], found["definition"], macs)


def _complexity(found: Json) -> Complexity:
    by_kind = {kind: _polynomial(part) for kind, part in found["macs_by_kind"].items()}
    return Complexity(_polynomial(found["macs"]), by_kind, _polynomial(found["attention_macs"]))


def _polynomial(found: Json) -> Polynomial:
    return Polynomial(*(Fraction(found[name]) for name in ("a", "b", "c")))


def _fit(found: Json) -> Fit:
    a, b, c = (_estimate(found[f"{name}_s"]) for name in ("a", "b", "c"))
    overtakes = _optional(_estimate, found["quadratic_overtakes_at_tokens"])
    return Fit(a, b, c, found["freedom"], found["worst_residual"], overtakes)


def _growth_class(found: Json) -> GrowthClass:
    return GrowthClass(found["weights"], tuple(found["open"]), found["noise"], found["separating_side"])


def _crossover(found: Json) -> Crossover:
    measured = _optional(_estimate, found["time_at_tokens"])
    return Crossover(found["dearer"], found["cheaper"], found["macs_at_tokens"], measured, found["beyond"])


def _estimate(found: Json) -> Estimate:
    return Estimate(found["value"], _interval(found["interval"]))


def _slopes(found: Sequence[Json]) -> tuple[Slope, ...]:
    return tuple(
        Slope(entry["from_tokens"], entry["to_tokens"], entry["value"], _optional(_interval, entry["interval"]))
        for entry in found
    )


def _interval(found: Sequence[float | None]) -> Interval:
    low, high = (inf if bound is None else bound for bound in found)
    return Interval(low, high)


def _optional(read: Callable[[Any], T], found: Any) -> T | None:
    return None if found is None else read(found)
