"""A study as JSON, in plain units: shares, tokens, pixels.

``schema_version`` rises when a field changes its meaning or goes; new fields may come at any time. Infinity is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from math import isfinite
from typing import Any

from torch import Tensor

from sola_profile.case import Resolution
from sola_profile.report.json_parts import Json, dump
from sola_profile.study.study_result import Study
from sola_vision.spec import LayerId

SCHEMA_VERSION = 1
# digits that are kept of maps, which are for the eye, and of lists of numbers
MAP_DIGITS, LIST_DIGITS = 3, 6


def study_json(study: Study) -> str:
    """The document with one field to a line."""
    return dump(document(study))


def document(study: Study) -> Json:
    """The document as plain dicts and lists."""
    question = study.question
    return {
        "schema_version": SCHEMA_VERSION,
        "command": question.command,
        "started": study.started,
        "interrupted": study.interrupted,
        "model": question.model.spec.name,
        "pattern": question.model.spec.pattern,
        "mixers": {letter: str(mixer) for letter, mixer in question.model.spec.mixers.items()},
        "weights": question.weights.name or None,
        "weights_sha256": question.weights.sha256 or None,
        "weights_step": question.weights.step,
        "images": list(study.images),
        "matrices": question.extent.matrices,
        "rows": question.extent.rows,
        "agrees": study.agrees,
        "sizes": plain(study.sizes),
        "horizons": plain(study.horizons),
        "remarks": list(study.remarks),
        "environment": asdict(study.environment),
    }


def plain(value: Any) -> Any:
    """Results as what JSON knows: field by field, layers by their place, maps as rows of numbers."""
    if isinstance(value, (LayerId, Resolution)):
        return str(value)
    if isinstance(value, Tensor):
        return [[_rounded(number, MAP_DIGITS) for number in row] for row in value.tolist()]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_rounded(each, LIST_DIGITS) if isinstance(each, float) else plain(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _rounded(number: float, digits: int) -> float | None:
    return float(f"{number:.{digits}g}") if isfinite(number) else None
