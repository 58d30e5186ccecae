"""Measured routes of softmax attention from a JSON file, as ``sola-profile kernels --device cuda`` writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sola_vision.ops._extension import extension
from sola_vision.suggest import did_you_mean

SCHEMA_VERSION = 1
_DTYPES = ("float32", "bfloat16", "float16")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_dtypes(value: object) -> bool:
    return isinstance(value, list) and all(name in _DTYPES for name in value)


_COUNT = ("a number", _is_count)
_CAPABILITY = ("a number such as 90 for 9.0", _is_count)
# key → what it must be, and whether it is
_KEYS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "backend": ("own, flash, cudnn or efficient", lambda value: value in extension.SOFTMAX_BACKENDS[1:]),
    "evidence": ("text", lambda value: isinstance(value, str)),
    "lowest_capability": _CAPABILITY,
    "highest_capability": _CAPABILITY,
    "dtypes": (f"a list of {', '.join(_DTYPES)}", _is_dtypes),
    "least_dim": _COUNT,
    "most_dim": _COUNT,
    "least_queries": _COUNT,
    "least_keys": _COUNT,
    "causal": ("true, false or null", lambda value: value is None or isinstance(value, bool)),
}
_NEEDED = ("backend", "evidence")


def read_routes(path: str, where: str) -> list[Any]:
    """The routes of a file in their order; ``ValueError`` begins with ``where`` and says what is wrong."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: can't be read as JSON: {error}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION or not isinstance(document.get("routes"), list):
        raise ValueError(f"{where}: must have schema_version {SCHEMA_VERSION} and a list routes, got {version!r}")
    return [_route(entry, f"{where}: route {number}") for number, entry in enumerate(document["routes"], 1)]


def _route(entry: object, where: str) -> Any:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be an object, got {entry!r}")
    for key in _NEEDED:
        if key not in entry:
            raise ValueError(f"{where} has no {key}")
    for key, value in entry.items():
        if key not in _KEYS:
            raise ValueError(f"{where} has the key {key!r}{did_you_mean(key, _KEYS)}")
        wanted, right = _KEYS[key]
        if not right(value):
            raise ValueError(f"{where}: {key} must be {wanted}, got {value!r}")
    return extension.SoftmaxRoute(**entry)
