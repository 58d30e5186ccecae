"""An experiment as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from sola_profile.measure.statistics import Interval
from sola_profile.report.numbers import duration, percent, whole
from sola_profile.report.tables import Table
from sola_profile.report.terminal import print_table
from sola_profile.study.experiment import PAPER_SAMPLES, REFERENCES, Contest, Experiment, Standing, paper_rows
from sola_profile.study.seed_statistics import MOST_SEEDS, Difference

NONE = "–"
_LEFT = frozenset({"Pattern"})
ALL_LINEAR = REFERENCES[0]


def contest_name(contest: Contest) -> str:
    """``match, L = wkv``."""
    return f"{contest.task}, L = {contest.mixer}"


def contest_table(contest: Contest) -> Table:
    """Every pattern with its mean, and its differences from the references."""
    compared = [name for name in REFERENCES if any(name in each.against for each in contest.standings)]
    columns = ["Pattern", "Seeds", "Accuracy", "95 % interval"]
    for name in compared:
        columns += [f"− {name}", f"95 % of − {name}", f"p (Holm) of − {name}", f"Seeds to separate from {name}"]
    rows = tuple(_standing(standing, compared) for standing in contest.standings)
    return Table(contest_name(contest), tuple(columns), rows, _LEFT)


def _standing(standing: Standing, compared: list[str]) -> tuple[str, ...]:
    cells = [
        standing.pattern,
        whole(len(standing.accuracies)),
        percent(standing.mean, 2),
        NONE if standing.interval is None else interval_text(standing.interval),
    ]
    for name in compared:
        cells += _difference(standing.against.get(name))
    return tuple(cells)


def _difference(difference: Difference | None) -> tuple[str, ...]:
    if difference is None:
        return (NONE,) * 4
    needed = f"> {whole(MOST_SEEDS)}" if difference.seeds_needed is None else whole(difference.seeds_needed)
    return (
        points(difference.mean),
        f"{points(difference.interval.low)} … {points(difference.interval.high)}",
        f"{difference.adjusted_p:.3f}" if difference.adjusted_p >= 0.001 else "< 0.001",
        "separated" if difference.separated else needed,
    )


def interval_text(interval: Interval) -> str:
    """``61.20 – 63.05 %``."""
    return f"{100 * interval.low:.2f} – {100 * interval.high:.2f} %"


def points(share: float) -> str:
    """A difference of accuracies in percentage points: ``+1.25``."""
    return f"{100 * share:+.2f}"


def paper_table() -> Table:
    """The paper's accuracies with their noise."""
    rows = tuple(
        (row.pattern, percent(row.accuracy, 2), f"± {100 * row.standard_error:.2f}", f"{row.gap_in_errors:.1f}")
        for row in paper_rows()
    )
    title = "The paper: 100 ImageNet classes, one run each"
    return Table(title, ("Pattern", "Top-1", "Standard error", "Behind the best, in standard errors"), rows, _LEFT)


def sentences(experiment: Experiment) -> Iterator[str]:
    """What can be said, and what can't."""
    done = len(experiment.outcomes)
    taken_s = sum(outcome.train_s for outcome in experiment.outcomes)
    yield f"{whole(done)} of {whole(experiment.planned)} runs are finished; together they trained for {duration(taken_s)}."
    for contest in experiment.contests:
        yield from _contest_sentences(contest)
    yield paper_sentence()


def _contest_sentences(contest: Contest) -> Iterator[str]:
    name = contest_name(contest)
    if contest.unlearnt:
        runs = sum(len(standing.accuracies) for standing in contest.standings)
        yield (
            f"{name}: {contest.unlearnt} of {runs} runs never left chance ({percent(contest.chance)}); means over seeds "
            "hide that such runs either learn or don't."
        )
    for reference in REFERENCES:
        known = {each.pattern: each.against[reference] for each in contest.standings if each.against.get(reference)}
        if not known:
            continue
        better = [pattern for pattern, each in known.items() if each and each.separated and each.mean > 0]
        worse = [pattern for pattern, each in known.items() if each and each.separated and each.mean < 0]
        apart = [f"{', '.join(better)} better"] if better else []
        apart += [f"{', '.join(worse)} worse"] if worse else []
        open_ones = len(known) - len(better) - len(worse)
        rest = f"{open_ones} of {len(known)} patterns can't be told from it" if open_ones else ""
        yield f"{name}: against {reference}, {'; '.join([*apart, rest] if rest else apart)}."
    if contest.paper is not None:
        agreement = contest.paper
        yield (
            f"{name}: Spearman's rank correlation with the paper's order {agreement.correlation:+.2f} "
            f"(p {agreement.p:.2f} over {agreement.count} patterns, not adjusted for the number of contests)."
        )


def paper_sentence() -> str:
    """How much of the paper's table is noise."""
    rows = paper_rows()
    near = [row for row in rows if 0 < row.gap_in_errors < 1.96]
    far = [row for row in rows if row.gap_in_errors >= 1.96]
    beyond = f"; beyond it: {', '.join(row.pattern for row in far)}" if far else ""
    return (
        f"The paper's own table has one run per pattern on {whole(PAPER_SAMPLES)} images: {len(near)} of the "
        f"{len(rows) - 1} others lie within 1.96 standard errors of its best, as if each had images of its own, and before any noise "
        f"of seeds{beyond}."
    )


def print_experiment(experiment: Experiment, console: Console) -> None:
    """Short tables, the sentences last."""
    for contest in experiment.contests:
        print_table(_short(contest), console)
    for sentence in sentences(experiment):
        console.print(Text(sentence))


def _short(contest: Contest) -> Table:
    """The columns that fit a terminal: the all-linear pattern is what the others are held against."""
    rows = []
    for standing in contest.standings:
        difference = standing.against.get(ALL_LINEAR)
        interval = NONE if standing.interval is None else interval_text(standing.interval)
        seeds = whole(len(standing.accuracies))
        rows.append((standing.pattern, seeds, percent(standing.mean, 2), interval, *_difference(difference)))
    columns = ("Pattern", "Seeds", "Accuracy", "95 % interval", f"− {ALL_LINEAR}", "95 %", "p (Holm)", "Seeds needed")
    return Table(contest_name(contest), columns, tuple(rows), _LEFT)
