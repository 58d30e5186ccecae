"""An experiment: patterns trained on tasks from several seeds, compared seed by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sola_profile.machine import Environment
from sola_profile.measure.statistics import Interval
from sola_profile.study.seed_statistics import (
    Difference,
    RankAgreement,
    bootstrap_interval,
    differences,
    rank_agreement,
    standard_error,
)
from sola_profile.study.trial import Outcome, Trial, paper_accuracies

# all linear, and the paper's own
REFERENCES = ("LLLLLL", "LLSLLS")
# what the paper's accuracies were measured on: 100 classes of ImageNet have 50 validation images each
PAPER_SAMPLES = 5000
CHANCE_ERRORS = 3


@dataclass(frozen=True)
class Standing:
    """One pattern on one task: accuracy of every seed, their mean with its interval, and its differences by reference."""

    pattern: str
    accuracies: dict[int, float]
    mean: float
    interval: Interval | None
    against: dict[str, Difference | None]


@dataclass(frozen=True)
class Contest:
    """All patterns of one task and one mixer; ``paper``: how far their order is the paper's.

    ``chance``: accuracy of a guess. ``unlearnt``: runs that aren't above it by ``CHANCE_ERRORS`` of its standard errors.
    """

    task: str
    mixer: str
    standings: tuple[Standing, ...]
    paper: RankAgreement | None
    chance: float
    unlearnt: int

    @property
    def seeds(self) -> int:
        """The most seeds that a pattern has."""
        return max(len(standing.accuracies) for standing in self.standings)


@dataclass(frozen=True)
class Experiment:
    """What the finished runs say; ``missing``: runs of the plan that aren't finished."""

    contests: tuple[Contest, ...]
    outcomes: tuple[Outcome, ...]
    planned: int
    missing: tuple[Trial, ...]
    command: str
    environment: Environment


def contests(outcomes: Iterable[Outcome], patterns: Sequence[str], chances: Mapping[str, float]) -> tuple[Contest, ...]:
    """The finished runs grouped by mixer and task, in the order they first come; ``chances``: of every task."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.trial.mixer, outcome.trial.task), []).append(outcome)
    return tuple(_contest(group, patterns, chances[task]) for (_, task), group in groups.items())


def _contest(outcomes: Sequence[Outcome], patterns: Sequence[str], chance: float) -> Contest:
    found: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.trial.pattern, {})[outcome.trial.seed] = outcome.accuracy
    known = [pattern for pattern in patterns if pattern in found]
    against: dict[str, dict[str, Difference | None]] = {pattern: {} for pattern in known}
    for reference in REFERENCES:
        others = [pattern for pattern in known if pattern != reference]
        if reference not in found:
            continue
        pairs = [_paired(found[pattern], found[reference]) for pattern in others]
        for pattern, difference in zip(others, differences(pairs), strict=True):
            against[pattern][reference] = difference
    standings = tuple(_standing(pattern, found[pattern], against[pattern]) for pattern in known)
    paper = paper_accuracies()
    both = [standing for standing in standings if standing.pattern in paper]
    agreement = rank_agreement([each.mean for each in both], [paper[each.pattern] for each in both])
    unlearnt = sum(outcome.accuracy <= _beyond_chance(chance, outcome.total) for outcome in outcomes)
    return Contest(outcomes[0].trial.task, outcomes[0].trial.mixer, standings, agreement, chance, unlearnt)


def _beyond_chance(chance: float, samples: int) -> float:
    return chance + CHANCE_ERRORS * standard_error(chance, samples)


def _standing(pattern: str, accuracies: dict[int, float], against: dict[str, Difference | None]) -> Standing:
    values = [accuracies[seed] for seed in sorted(accuracies)]
    return Standing(pattern, accuracies, sum(values) / len(values), bootstrap_interval(values), against)


def _paired(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


@dataclass(frozen=True)
class PaperRow:
    """A pattern in the paper: accuracy, and its distance from the best in standard errors of a difference."""

    pattern: str
    accuracy: float
    standard_error: float
    gap_in_errors: float


def paper_rows() -> list[PaperRow]:
    """The paper's table with the noise that so many validation images leave; seeds would add to it."""
    accuracies = paper_accuracies()
    best = max(accuracies.values())
    rows = []
    for pattern, accuracy in accuracies.items():
        error, of_best = (standard_error(each, PAPER_SAMPLES) for each in (accuracy, best))
        rows.append(PaperRow(pattern, accuracy, error, (best - accuracy) / (error**2 + of_best**2) ** 0.5))
    return rows
