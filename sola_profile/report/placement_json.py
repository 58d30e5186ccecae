"""A placement as JSON, in plain units: seconds, bytes, multiply-accumulates.

``schema_version`` rises when a field changes its meaning or goes; new fields may come at any time.
"""

from __future__ import annotations

from dataclasses import asdict

from sola_profile.report.json_parts import Json, dump, interval_json, latency_json
from sola_profile.study.placement import Option, Placement

SCHEMA_VERSION = 1


def placement_json(placement: Placement) -> str:
    """The document with one field to a line."""
    return dump(document(placement))


def document(placement: Placement) -> Json:
    """The document as plain dicts and lists."""
    question = placement.question
    return {
        "schema_version": SCHEMA_VERSION,
        "command": question.command,
        "started": placement.started,
        "interrupted": placement.interrupted,
        "model": question.spec.name,
        "height": question.resolution.height,
        "width": question.resolution.width,
        "settings": asdict(question.settings),
        "machine": None if question.machine is None else question.machine.name,
        "score": asdict(placement.score),
        "cost": placement.cost,
        "decay_per": question.decay_per,
        "free_stages": list(question.stages),
        "budgets": asdict(question.budgets),
        "patterns": placement.size,
        "searched_s": placement.searched_s,
        "own": _option(placement.own),
        "chosen": None if placement.chosen is None else {**_option(placement.chosen), "model": placement.model},
        "front": [_option(option) for option in placement.front],
        "references": [_option(option) for option in placement.references],
        "swaps": [{"change": swap.change, **_option(swap.option)} for swap in placement.swaps],
        "confirmations": [
            {
                **_option(each.option),
                "measured": None if each.latency is None else latency_json(each.latency),
                "residual": each.residual,
            }
            for each in placement.confirmations
        ],
        "parts": {name: latency_json(latency) for name, latency in placement.parts.items()},
        "remarks": list(placement.remarks),
        "environment": asdict(placement.environment),
    }


def _option(option: Option) -> Json:
    return {
        "pattern": option.pattern,
        "softmax_layers": option.softmax,
        "macs": option.macs,
        "latency_s": option.latency_s,
        "latency_interval_s": None if option.interval_s is None else interval_json(option.interval_s),
        "score": option.score,
        "predicted_memory": None
        if option.memory is None
        else {**asdict(option.memory), "total_bytes": option.memory.total_bytes},
        "names": list(option.names),
        "within_budgets": option.within,
        "on_front": option.on_front,
    }
