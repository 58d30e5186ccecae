"""Where measured machines are kept, and those of data sheets: by name, file or fingerprint.

A measured machine is a JSON file in ``sola-profile/machines`` of the user's cache folder (``XDG_CACHE_HOME``), or in the
folder that ``SOLA_MACHINES`` names. Its fingerprint is what its rates depend on; another one is another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import resources
from itertools import pairwise
from math import inf, prod
from pathlib import Path
from typing import Any

from sola_profile.case import nearest
from sola_profile.files import replace_text
from sola_profile.hardware import (
    BYTES,
    CALL,
    ELEMENTS,
    FLOPS,
    OPERATIONS,
    PRODUCTS,
    SCALARS,
    SECONDS,
    TRAFFIC,
    Machine,
    Surface,
    constant,
)
from sola_profile.machine import environment
from sola_profile.typed import check_types, filled

FOLDER_VARIABLE = "SOLA_MACHINES"
SCHEMA_VERSION = 1
UNITS = (FLOPS, ELEMENTS, OPERATIONS, BYTES, SECONDS)
# of an environment, what rates depend on; threads are the machine's own
FINGERPRINT = (
    "cpu",
    "cores",
    "logical_cores",
    "torch",
    "sola_vision",
    "cpu_capability",
    "gpu",
    "cuda",
    "cudnn",
    "kernels",
)


def folder() -> Path:
    """Where measured machines are kept."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "sola-profile" / "machines"


def fingerprint(device: str) -> dict[str, Any]:
    """What the rates of this machine depend on."""
    found = asdict(environment())
    names = FINGERPRINT if device != "cpu" else [name for name in FINGERPRINT if name not in ("gpu", "cuda", "cudnn")]
    return {**{name: found[name] for name in names}, "probes": _probes()}


def _probes() -> str:
    """A digest of what is measured: rates of fewer families, or on other shapes, are no answer to today's questions."""
    from sola_profile.measure.probes import FAMILIES

    known = [[family.name, family.unit, family.axes, family.least] for family in FAMILIES]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:8]


def machine_name(marks: Mapping[str, Any], device: str, dtype: str, threads: int) -> str:
    """``amd-epyc-2-threads-float32-1a2b3c4d``: the same for the same fingerprint and settings."""
    what = str(marks.get("gpu") if device != "cpu" else marks["cpu"])
    words = re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")[:40].rstrip("-")
    digest = hashlib.sha256(json.dumps([marks, device], sort_keys=True).encode()).hexdigest()[:8]
    return f"{words}-{threads}-thread{'s' if threads > 1 else ''}-{dtype}-{digest}"


def stored(device: str, dtype: str, threads: int) -> Machine | None:
    """What was measured of this machine before; None when it never was with this fingerprint."""
    path = folder() / f"{machine_name(fingerprint(device), device, dtype, threads)}.json"
    # Path.is_file raises where the folder above may not be read
    return read_machine(path) if os.path.isfile(path) else None


def save(machine: Machine) -> Path:
    """Keep a measured machine; returns its file."""
    folder().mkdir(parents=True, exist_ok=True)
    path = folder() / f"{machine.name}.json"
    replace_text(path, json_text(machine))
    return path


def json_text(machine: Machine) -> str:
    """A machine as JSON; ``schema_version`` rises when a field changes its meaning or goes."""
    return document_text({"schema_version": SCHEMA_VERSION, **asdict(machine)})


def document_text(document: Mapping[str, Any]) -> str:
    """A document to keep, a list of numbers to a line."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda match: " ".join(match[0].split()), text) + "\n"


def read_machine(path: Path) -> Machine:
    """Read a machine's file; raises ``ValueError`` that says what is wrong with it."""
    document = read_document(path, "machine", SCHEMA_VERSION)
    try:
        surfaces = {name: filled(Surface, surface) for name, surface in document["surfaces"].items()}
        machine = filled(Machine, {**document, "surfaces": surfaces})
        check_types(machine)
        _check_surfaces(machine)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"machine: {path} is no machine: {what}") from error
    return machine


def read_document(path: Path, what: str, schema_version: int) -> dict[str, Any]:
    """A kept JSON object; raises ``ValueError`` that says what is wrong with it, and begins with ``what``."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{what}: can't read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {path} is no JSON: {error}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != schema_version:
        raise ValueError(f"{what}: {path}: expected schema_version {schema_version}, got {version}")
    found: dict[str, Any] = document
    return found


def _check_surfaces(machine: Machine) -> None:
    """Raise ``ValueError`` for what is needed and missing, and for rates that can't be looked up or divided by."""
    for needed in (TRAFFIC, CALL):
        if needed not in machine.surfaces:
            raise ValueError(f"surfaces: expected {needed!r} among them, got {', '.join(machine.surfaces) or 'none'}")
    if not machine.measured:
        for needed in ("sources", "assumptions"):
            if not isinstance(machine.fingerprint.get(needed), list):
                raise ValueError(f"fingerprint: expected a list of {needed} where nothing was measured")
    for name, surface in machine.surfaces.items():
        complaint = _complaint(surface)
        if complaint:
            raise ValueError(f"surfaces[{name!r}]: {complaint}")


def _complaint(surface: Surface) -> str | None:
    if surface.unit not in UNITS:
        return f"unit: expected one of {', '.join(UNITS)}, got {surface.unit!r}"
    for name, values in surface.axes.items():
        if not values or not values[0] > 0 or any(not low < high < inf for low, high in pairwise(values)):
            return f"axes[{name!r}]: expected rising numbers above 0, got {values}"
    points = prod(len(values) for values in surface.axes.values())
    if len(surface.rates) != points:
        return f"rates: expected {points}, one for every point of the axes, got {len(surface.rates)}"
    for rate in surface.rates:
        low, middle, high = rate
        # a call may cost nothing that can be measured, but nothing is done at no rate
        if not 0 <= low <= middle <= high < inf or (low == 0 and (surface.unit != SECONDS or points > 1)):
            return f"rates: expected low, middle and high above 0, got {rate}"
    return None


def measured_names() -> list[str]:
    """Names of all machines in the folder."""
    return sorted(path.stem for path in folder().glob("*.json")) if folder().is_dir() else []


def datasheets() -> dict[str, dict[str, Any]]:
    """Machines known from their makers' figures only, by name."""
    text = resources.files("sola_profile").joinpath("machines/datasheets.json").read_text(encoding="utf-8")
    sheets: dict[str, dict[str, Any]] = json.loads(text)
    return sheets


def find_machine(text: str, dtype: str) -> Machine:
    """A machine by the name of a data sheet, the name of a measured one, or a file; ``ValueError`` for anything else."""
    sheets = datasheets()
    if text in sheets:
        return _from_datasheet(sheets[text], dtype)
    if text in measured_names():
        return _of_dtype(read_machine(folder() / f"{text}.json"), dtype)
    if text.endswith(".json") or os.sep in text:
        return _of_dtype(read_machine(Path(text)), dtype)
    known = ["this", *sheets, *measured_names()]
    raise ValueError(f"machine: expected {', '.join(['this', *sheets])}, a measured one (sola-profile machine --list)"
                     f" or a file, got {text!r}{nearest(text, known)}")  # fmt: skip


def _of_dtype(machine: Machine, dtype: str) -> Machine:
    if machine.dtype != dtype:
        raise ValueError(f"machine: {machine.name} was measured in {machine.dtype}, not in {dtype}")
    return machine


def _from_datasheet(sheet: Mapping[str, Any], dtype: str) -> Machine:
    """Peak rates for everything: no kernel reaches them, so times are lower bounds but for the cost of calls."""
    peaks = sheet["peak_flops"]
    if dtype not in peaks:
        raise ValueError(f"dtype: {sheet['name']} has figures for {', '.join(peaks)}, not for {dtype}")
    surfaces = {
        PRODUCTS: constant(FLOPS, peaks[dtype]),
        SCALARS: constant(OPERATIONS, sheet["scalar_ops_per_s"]),
        TRAFFIC: constant(BYTES, sheet["bandwidth_bytes_per_s"]),
        CALL: constant(SECONDS, sheet["call_s"]),
    }
    facts = {"sources": sheet["sources"], "assumptions": sheet["assumptions"]}
    return Machine(sheet["name"], False, "accelerator", dtype, 0, surfaces, facts)


def listed() -> Iterator[tuple[str, str]]:
    """Every machine's name with a word about it."""
    for name, sheet in datasheets().items():
        yield name, f"{sheet['name']}, from data sheets, not measured"
    for name in measured_names():
        machine = read_machine(folder() / f"{name}.json")
        yield name, f"measured {machine.measured_at}, {machine.device}, {machine.dtype}, threads: {machine.threads}"
