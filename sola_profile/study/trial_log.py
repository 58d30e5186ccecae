"""The raw results of an experiment: a CSV file that grows by one line per finished run. Torch-free."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from sola_profile.study.trial import Outcome, Trial

FIELDS = (
    "mixer",
    "task",
    "pattern",
    "seed",
    "correct",
    "total",
    "loss",
    "train_s",
    "settings",
    "version",
    "torch",
)

HEADER = f"{','.join(FIELDS)}\n".encode()


class TrialLog:
    """Reads and extends ``path``. A line is on the disk before the next run begins.

    A last line without its end, as a cut power line leaves it, doesn't count, and the run is done again; ``add`` takes it
    off. Reading changes nothing, so that it may go on beside the one process that adds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[Trial, Outcome] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        # a file of somebody else's is left as it is; of our own even the first line may be cut
        names = csv.DictReader(io.StringIO(data.decode("utf-8", "replace"), newline="")).fieldnames or ()
        if data and tuple(names) != FIELDS and not HEADER.startswith(data):
            raise ValueError(f"out: {self.path} holds other columns than an experiment's: {', '.join(names)}")
        try:
            text = whole.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"out: {self.path} is no text: {error}") from error
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
            try:
                outcome = read_row(row)
            except (TypeError, ValueError) as error:
                raise ValueError(f"out: {self.path}, line {number}: {error}") from error
            self.outcomes[outcome.trial] = outcome

    def add(self, outcome: Outcome) -> None:
        """Write a line and wait until it is on the disk."""
        text = io.StringIO(newline="")
        csv.DictWriter(text, FIELDS, lineterminator="\n").writerow(row_of(outcome))
        with self.path.open("a+b") as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.write((b"" if whole else HEADER) + text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())
        self.outcomes[outcome.trial] = outcome

    def check_settings(self, wanted: Iterable[tuple[Trial, str]]) -> None:
        """Raise ``ValueError`` when a finished run was told something else than ``wanted``: trials and fingerprints."""
        for trial, settings in wanted:
            found = self.outcomes.get(trial)
            if found is not None and found.settings != settings:
                raise ValueError(
                    f"out: {self.path} holds runs with other settings ({trial}); results of both can't be mixed: "
                    "give another folder, or remove the file"
                )


def row_of(outcome: Outcome) -> dict[str, object]:
    """An outcome as a line of the file."""
    trial = outcome.trial
    return {
        "mixer": trial.mixer,
        "task": trial.task,
        "pattern": trial.pattern,
        "seed": trial.seed,
        "correct": outcome.correct,
        "total": outcome.total,
        "loss": f"{outcome.loss:.6g}",
        "train_s": f"{outcome.train_s:.2f}",
        "settings": outcome.settings,
        "version": outcome.version,
        "torch": outcome.torch,
    }


def read_row(row: dict[str, str]) -> Outcome:
    """The outcome of a line; raises ``ValueError`` or ``TypeError`` where a value is missing or no number."""
    trial = Trial(row["mixer"], row["task"], row["pattern"], int(row["seed"]))
    correct, total = int(row["correct"]), int(row["total"])
    if not 0 <= correct <= total or not total:
        raise ValueError(f"correct: expected 0 to total={total}, got {correct}")
    rest = (row["settings"], row["version"], row["torch"])
    return Outcome(trial, correct, total, float(row["loss"]), float(row["train_s"]), *rest)
