"""Runs of ``sola-profile predict --accuracy``: those that come with the package, and those of this user's machines."""

from __future__ import annotations

import os
from dataclasses import asdict
from importlib import resources
from math import inf
from pathlib import Path

from sola_profile.compare.deviations import Deviations
from sola_profile.files import replace_text
from sola_profile.hardware import Machine
from sola_profile.machine_store import document_text, folder, read_document
from sola_profile.typed import check_types, filled

SCHEMA_VERSION = 1
FOLDER = "accuracy"


def known_of(machine: Machine) -> tuple[Deviations, ...]:
    """What is known of a machine: its own run, else those that come with the package; nothing of data sheets, nor
    of ceilings that may be anything.

    Raises ``ValueError`` that says what is wrong with a kept file.
    """
    if not machine.measured or machine.crowded:
        return ()
    own = _file(machine.name)
    # Path.is_file raises where the folder above may not be read
    return (_read(own),) if os.path.isfile(own) else shipped()


def shipped() -> tuple[Deviations, ...]:
    """The runs that come with the package."""
    with resources.as_file(resources.files("sola_profile") / "machines" / FOLDER) as files:
        return tuple(_read(path) for path in sorted(files.glob("*.json")))


def keep(found: Deviations) -> Path:
    """Keep a run beside its machine, for the predictions that follow; returns its file."""
    path = _file(found.machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, document_text({"schema_version": SCHEMA_VERSION, **asdict(found)}))
    return path


def _file(machine: str) -> Path:
    return folder() / FOLDER / f"{machine}.json"


def _read(path: Path) -> Deviations:
    document = read_document(path, "accuracy", SCHEMA_VERSION)
    try:
        found = filled(Deviations, document)
        check_types(found)
        for model, ratios in found.ratios.items():
            if not all(0 < ratio < inf for ratio in ratios):
                raise ValueError(f"ratios[{model!r}]: expected numbers above 0, got {ratios}")
    except (KeyError, ValueError) as error:
        what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"accuracy: {path} holds no deviations: {what}") from error
    return found
