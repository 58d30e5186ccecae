"""What fits in a given memory, as a table."""

from __future__ import annotations

from sola_profile.fitting import Confirmation, Fitted, Fitting
from sola_profile.report.numbers import mebibytes
from sola_profile.report.tables import Table


def fit_table(fitting: Fitting, limit: str) -> Table:
    """One line per size, and one for the largest square image. ``limit``: the memory in the user's words."""
    found = [*fitting.batches, *filter(None, [fitting.square])]
    rows = tuple((*_cells(entry), "largest square" if entry is fitting.square else "") for entry in found)
    columns = ("Size", "Images", "Predicted", "with one more", "Run under the limit", "")
    title = f"{fitting.source.name} in {limit}, {fitting.headroom:.0%} of it kept free"
    return Table(title, columns, rows, frozenset({"Run under the limit", ""}))


def _cells(found: Fitted) -> tuple[str, ...]:
    predicted = mebibytes(found.total_bytes) if found.batch else "–"
    shown = _confirmed(found.confirmation) if found.confirmation else "–"
    further = "–" if found.next_bytes is None else mebibytes(found.next_bytes)
    return str(found.resolution), str(found.batch or "none"), predicted, further, shown


def _confirmed(seen: Confirmation) -> str:
    grown = "" if seen.peak_bytes is None else f", grew by {mebibytes(seen.peak_bytes)}"
    return f"ran{grown}" if seen.ran else f"failed: {seen.why}{grown}"
