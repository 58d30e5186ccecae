"""Reports: a finished ``Profile`` as text, page, JSON or CSV. None of them measures.

A new format is one file here and one line in ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sola_profile.result import Profile

# formats that are one text, by the option that asks for them
FORMATS: Mapping[str, str] = {
    "json": "sola_profile.report.json_file:json_text",
    "csv": "sola_profile.report.csv_file:csv_text",
}


def render(name: str, profile: Profile) -> str:
    """A profile in one of ``FORMATS``."""
    module, _, function = FORMATS[name].partition(":")
    writer: Callable[[Profile], str] = getattr(import_module(module), function)
    return writer(profile)
