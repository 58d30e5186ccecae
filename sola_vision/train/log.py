"""What a run writes down as it goes: a CSV file, and TensorBoard's where it is wanted."""

from __future__ import annotations

import csv
from pathlib import Path
from types import TracebackType
from typing import Any

COLUMNS = ("step", "lr", "train_loss", "eval_loss", "accuracy", "ema_accuracy", "train_seconds")
NAME = "log.csv"


class Log:
    """Lines of ``log.csv``: a mean training loss or an evaluation each. A context, which closes the files.

    ``step``: where the run begins; lines behind it are from a part that was lost, and are taken out. ``ended``: nothing
    is left of the run but its last evaluation, whose line will be written again.
    """

    def __init__(self, folder: Path | None, step: int, *, ended: bool, tensorboard: bool) -> None:
        self.path = folder / NAME if folder else None
        self.board = _board(folder, step) if tensorboard and folder else None
        if self.path is None:
            return
        kept = _lines(self.path, step) if step else []
        if ended:
            kept = [line for line in kept if int(line["step"]) < step or not line["eval_loss"]]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.board is not None:
            self.board.close()

    def add(self, step: int, **values: float | None) -> None:
        """One line; what isn't given stays empty."""
        found = {key: value for key, value in values.items() if value is not None}
        if self.path is not None:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS).writerow({"step": step, **found})
        if self.board is not None:
            for key, value in found.items():
                self.board.add_scalar(key, value, step)


def has_steps(folder: Path) -> bool:
    """Whether a run has written a line of a step there."""
    path = folder / NAME
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return any(line[:1].isdigit() for line in file)


def _lines(path: Path, step: int) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        # a line that was cut off by a crash has no step, or not all columns
        return [
            {key: line[key] for key in COLUMNS}
            for line in csv.DictReader(file)
            if (line.get("step") or "").isdigit() and None not in line.values() and int(line["step"]) <= step
        ]


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard: TensorBoard is not installed: pip install tensorboard") from None
    return SummaryWriter(folder, purge_step=step)
