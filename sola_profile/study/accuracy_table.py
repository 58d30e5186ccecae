"""Accuracies of patterns that somebody trained, as a CSV file. Torch-free."""

from __future__ import annotations

import csv
from math import isfinite
from pathlib import Path

from sola_profile.case import nearest
from sola_profile.study.space import Space

# the paper's own: top-1 on 100 ImageNet classes, 200 epochs, one run each
PAPER_TABLE = Path(__file__).parent.parent / "published" / "stage3_patterns.csv"
COLUMNS = ("pattern", "accuracy")


def read_accuracies(path: Path, space: Space) -> dict[str, float]:
    """Letters → accuracy, of a file with the columns pattern and accuracy.

    Raises ``ValueError`` that names the line, and ``OSError`` when it can't be read.
    """
    with path.open(encoding="utf-8", newline="") as file:
        try:
            rows = list(csv.DictReader(file, skipinitialspace=True))
        except UnicodeDecodeError as error:
            raise ValueError(f"table: {path.name} is no text: {error}") from error
        _check_columns(path, list(rows[0]) if rows else [])
    found: dict[str, float] = {}
    for number, row in enumerate(rows, start=2):
        try:
            letters, accuracy = space.read(row["pattern"]), _number(row["accuracy"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"table: {path.name}, line {number}: {error}") from error
        if letters in found:
            raise ValueError(f"table: {path.name}, line {number}: {row['pattern']} stands there twice")
        found[letters] = accuracy
    return found


def _number(text: str | None) -> float:
    found = float("nan" if text is None else text)
    if not isfinite(found):
        raise ValueError(f"accuracy: expected a number, got {text or 'nothing'}")
    return found


def _check_columns(path: Path, columns: list[str]) -> None:
    for name in COLUMNS:
        if name not in columns:
            hint = nearest(name, columns)
            raise ValueError(f"table: {path.name}: expected the columns {', '.join(COLUMNS)}, {name} is missing{hint}")
