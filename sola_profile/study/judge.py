"""What a pattern costs, how far it reaches, and whether it keeps to the budgets."""

from __future__ import annotations

from math import inf

from sola_profile.measure.statistics import Interval
from sola_profile.study.accuracy_table import PAPER_TABLE, read_accuracies
from sola_profile.study.block_times import NANOSECONDS, PartTimes
from sola_profile.study.horizon import layer_variances
from sola_profile.study.placement import ACCURACY, COSTS, SCORES, Option, Question
from sola_profile.study.reach import HORIZON, RUN, LongestRun, Score, loss_of, mean_reach
from sola_profile.study.search import Bounded, front
from sola_profile.study.space import LATENCY, MACS, Costs, Space, macs, softmax_layers


class Judge:
    """Judges the patterns of one question.

    ``times``: of the parts, once they are measured. ``listed``: letters → score, for a score that only some patterns have.
    Raises ``ValueError`` that names what is wrong with the question.
    """

    def __init__(self, question: Question) -> None:
        _check(question)
        self.question = question
        self.kind = SCORES[question.score]
        self.space = Space(question.spec, question.stages, own=question.pattern or question.spec.pattern)
        self.macs = macs(self.space, question.resolution, question.settings.batch)
        self.times: PartTimes | None = None
        self.listed: dict[str, float] = {}
        if question.score == ACCURACY:
            self.listed = read_accuracies(question.table or PAPER_TABLE, self.space)
        self._softmax = softmax_layers(self.space)
        self._score = self._followed_score()

    def _followed_score(self) -> Score | None:
        if self.question.score == RUN:
            return LongestRun(self.space.is_softmax)
        if self.question.score == HORIZON:
            spec = self.question.spec.rewired(mixers=self.question.mixers)
            return mean_reach(self.space, layer_variances(Space(spec), self.question.resolution))
        return None

    @property
    def cost(self) -> str:
        """What the front is drawn against."""
        return MACS if self.times is None else self.question.cost or LATENCY

    def option(self, letters: str, *names: str) -> Option:
        """One pattern, judged."""
        latency_s, interval = self._latency(letters)
        option = Option(
            self.space.pattern(letters),
            self._softmax.of(self.space, letters),
            self.macs.of(self.space, letters),
            latency_s,
            interval,
            self._reach(letters),
            names=names,
        )
        return option.judged(self.question.budgets)

    def _latency(self, letters: str) -> tuple[float | None, Interval | None]:
        if self.times is None or not self.times.knows(self.space, letters):
            return None, None
        return self.times.costs().of(self.space, letters) / NANOSECONDS, self.times.interval(self.space, letters)

    def _reach(self, letters: str) -> float | None:
        if self._score is None:
            return self.listed.get(letters)
        return self._score.value(loss_of(self._score, letters))

    def search(self) -> tuple[Option, ...]:
        """The front within the budgets but that of memory, from cheap to dear."""
        if self._score is None:
            return self._front_of_listed()
        main, *others = self._bounds()
        return tuple(self.option(found.letters) for found in front(self.space, self._score, main, others))

    def runs(self) -> tuple[str, ...]:
        """Letters of the front of cost and longest run."""
        main, *others = self._bounds()
        found = front(self.space, LongestRun(self.space.is_softmax), main, others)
        return tuple(entry.letters for entry in found)

    def _bounds(self) -> list[Bounded]:
        """The cost of the front, then what else has a budget."""
        budgets = self.question.budgets
        costs: dict[str, tuple[Costs, float | None]] = {MACS: (self.macs, budgets.macs)}
        if self.times is not None:
            most_s = budgets.latency_s
            costs[LATENCY] = (self.times.costs(), None if most_s is None else NANOSECONDS * most_s)
        own_costs, own_most = costs.pop(self.cost)
        bounds = [Bounded(own_costs, inf if own_most is None else own_most)]
        bounds += [Bounded(each, most) for each, most in costs.values() if most is not None]
        if budgets.softmax is not None:
            bounds.append(Bounded(self._softmax, budgets.softmax))
        return bounds

    def _front_of_listed(self) -> tuple[Option, ...]:
        sign = -1 if self.kind.more_is_better else 1
        options = [self.option(letters) for letters in self.listed if self.space.holds(letters)]
        known = [(option.cost(self.cost), sign * (option.score or 0), option) for option in options if option.within]
        kept: list[Option] = []
        lowest = inf
        for cost, loss, option in sorted(
            ((cost, loss, option) for cost, loss, option in known if cost is not None),
            key=lambda entry: (entry[0], entry[1], entry[2].pattern),
        ):
            del cost
            if loss < lowest:
                kept.append(option)
                lowest = loss
        return tuple(kept)


def _check(question: Question) -> None:
    for name, value, known in (("score", question.score, SCORES), ("cost", question.cost or MACS, COSTS)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if question.table is not None and question.score != ACCURACY:
        raise ValueError(f"table: belongs to score {ACCURACY}, got score {question.score!r}")
    timed = question.budget_s is not None or question.machine is not None
    if not timed and (question.cost == LATENCY or question.budgets.latency_s is not None):
        raise ValueError("latency: it is not known without measuring or a machine; give MACs a limit, or one of these")
    if question.machine is not None and question.budget_s is not None:
        raise ValueError(f"budget_s: nothing is measured for the machine {question.machine.name}; expected None")
