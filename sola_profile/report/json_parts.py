"""Pieces of JSON that the documents of all commands share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from math import isinf
from typing import Any

from sola_profile.hardware import Span
from sola_profile.measure.latency import Latency
from sola_profile.measure.statistics import Interval
from sola_profile.result import Killed, LeftOut, Missing, NotReached, OutOfMemory, OverBudget

_NUMBERS = re.compile(r"\[[-+0-9.eE,\s]+\]")

Json = dict[str, Any]

_REASONS: Mapping[type[Missing], str] = {
    OverBudget: "over budget",
    OutOfMemory: "out of memory",
    NotReached: "not reached",
    Killed: "killed",
}


def dump(document: Json) -> str:
    """The document with one field to a line, and lists of numbers on one line."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda match: " ".join(match[0].split()), text) + "\n"


def latency_json(latency: Latency) -> Json:
    """Every sample with its round, and what was made of them."""
    return {
        "median_s": latency.median_s,
        "interval_s": interval_json(latency.interval_s),
        "unstable": latency.unstable,
        "doubts": [asdict(doubt) for doubt in latency.doubts],
        "samples_s": list(latency.samples_s),
        "rounds": list(latency.rounds),
        "warm_up_s": list(latency.warm_up.times_s),
        "warm_up_settled": latency.warm_up.settled,
    }


def span_json(span: Span) -> Json:
    """A predicted time in seconds with its interval."""
    return {"time_s": span.middle, "interval_s": [span.low, span.high]}


def read_span(found: Json) -> Span:
    """What ``span_json`` wrote."""
    low, high = found["interval_s"]
    return Span(low, found["time_s"], high)


def missing_json(missing: Missing) -> Json:
    """Why there is no measurement."""
    if isinstance(missing, LeftOut):
        return {"reason": "left out", "why": missing.reason}
    return {"reason": _REASONS[type(missing)], **asdict(missing)}


def read_missing(found: Json) -> Missing:
    """What ``missing_json`` wrote."""
    values = {name: value for name, value in found.items() if name != "reason"}
    if found["reason"] == "left out":
        return LeftOut(values["why"])
    kinds = {reason: kind for kind, reason in _REASONS.items()}
    if found["reason"] not in kinds:
        raise ValueError(f"reason: expected left out, {', '.join(kinds)}, got {found['reason']!r}")
    return kinds[found["reason"]](**values)


def interval_json(interval: Interval) -> list[float | None]:
    """Both ends; null for one at infinity."""
    return [None if isinf(bound) else bound for bound in (interval.low, interval.high)]
