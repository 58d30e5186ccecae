"""One training run of a pattern experiment: what is trained, and how it ended. Torch-free."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sola_profile.study.accuracy_table import PAPER_TABLE

# the stage of four whose six layers the paper's ten patterns are about
STAGE = 3


@dataclass(frozen=True, order=True)
class Trial:
    """A pattern of stage 3 trained on a task from one seed; ``mixer`` stands for the letter L everywhere."""

    mixer: str
    task: str
    pattern: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}, {self.mixer}, {self.pattern}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: ``correct`` of ``total`` fresh samples.

    ``settings``: a fingerprint of everything the run was told; ``version``, ``torch``: of the code that ran it.
    """

    trial: Trial
    correct: int
    total: int
    loss: float
    train_s: float
    settings: str
    version: str
    torch: str

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return self.correct / self.total


def plan(tasks: Sequence[str], mixers: Sequence[str], patterns: Sequence[str], seeds: int) -> Iterator[Trial]:
    """All trials, mixer by mixer and seed by seed, so that a sweep cut short has compared all patterns alike."""
    for mixer in mixers:
        for seed in range(seeds):
            for task in tasks:
                for pattern in patterns:
                    yield Trial(mixer, task, pattern, seed)


def paper_accuracies() -> dict[str, float]:
    """Pattern of stage 3 → top-1 share of the paper's Table 2, in its order: 100 ImageNet classes, one run each."""
    with PAPER_TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["pattern"].split("|")[STAGE - 1]: float(row["accuracy"]) / 100 for row in rows}
