"""The published schemas of docs/schema, for whatever writes such a document."""

import json
from pathlib import Path
from typing import Any

import jsonschema

FOLDER = Path(__file__).parents[1] / "docs" / "schema"


def schema(name: str) -> Any:
    """The schema of this name."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def conforming(name: str, text: str) -> Any:
    """The document, if it is one that its schema describes."""
    document = json.loads(text)
    jsonschema.Draft202012Validator(schema(name)).validate(document)
    return document
