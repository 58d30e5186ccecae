"""Loads the compiled extension, or says how to build it."""

from __future__ import annotations

import importlib
from types import ModuleType

_HOW_TO_BUILD = (
    "sola_vision's compiled extension (sola_vision._C) {state}.\n"
    "  {detail}\n"
    "Build it in the source tree with `python setup.py build_ext --inplace`, or install the package with\n"
    "`pip install --no-build-isolation .`; both need a C++20 compiler and the torch that will be used."
)


def load() -> ModuleType:
    """Import ``sola_vision._C``, which registers the ``sola::`` operators with torch."""
    try:
        return importlib.import_module("sola_vision._C")
    except ModuleNotFoundError as error:
        if error.name != "sola_vision._C":
            raise
        raise ImportError(_HOW_TO_BUILD.format(state="is not built", detail=error)) from error
    except ImportError as error:
        state = "does not load; it was probably built against another torch"
        raise ImportError(_HOW_TO_BUILD.format(state=state, detail=error)) from error


extension = load()
