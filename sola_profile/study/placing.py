"""The conductor of a placement: costs of the layers, measured or counted; search; whole models measured to confirm."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from sola_profile.cost.liveness import predict_peak
from sola_profile.hardware import Machine
from sola_profile.machine import environment
from sola_profile.memory import PeakMemory
from sola_profile.study.block_times import PartRace, part_name
from sola_profile.study.confirming import Confirming
from sola_profile.study.effective_field import effective_area
from sola_profile.study.judge import Judge
from sola_profile.study.known_patterns import known_patterns
from sola_profile.study.placement import ACCURACY, AREA, Option, Placement, Question, Swap
from sola_profile.study.predicted_parts import PartPrediction
from sola_profile.workload import build, cpu_threads

# points of a front whose memory is predicted, and which a table shows
MOST_SHOWN = 12
# share of the time that goes to single layers, the rest to whole models
PARTS_SHARE = 0.6
PAPER_NOISE = (
    "The accuracies are the paper's (arXiv 2601.11164, Table 2): 100 ImageNet classes, one run each. With 5,000 images one "
    "standard error is about 0.46 points, more than most of their differences."
)


class Placing:
    """Answers one question; ``run`` goes through the work, ``result`` gives what is finished by then.

    Raises ``ValueError`` that names what is wrong with the question.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.judge = Judge(question)
        self.interrupted = False
        self._swapped = {swap: self.judge.space.swapped(self.judge.space.own_letters, swap) for swap in question.swaps}
        self._known = known_patterns(self.judge.space)
        self._parts: PartRace | None = None
        self._memory: dict[str, PeakMemory] = {}
        self._remarks: list[str] = []
        if question.score == ACCURACY and question.table is None:
            self._remarks.append(PAPER_NOISE)
        self._front: tuple[Option, ...] = ()
        self._references: tuple[Option, ...] = ()
        self._limit: float | None = None
        self._confirming: Confirming | None = None
        self._searched_s = 0.0
        self._environment = environment()
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def run(self) -> Iterator[str]:
        """Do the work; yields what is done next. After an interruption ``finish`` makes the most of what there is."""
        with cpu_threads(self.question.settings.threads):
            if self.question.budget_s is not None:
                yield from self._time_parts(PARTS_SHARE * self.question.budget_s)
            if self.question.machine is not None:
                yield from self._predict_parts(self.question.machine)
            yield from self._measure_areas()
            yield from self._find()
            if self._parts is not None and self.question.budget_s is not None and self.judge.times is not None:
                yield from self._confirm((1 - PARTS_SHARE) * self.question.budget_s)

    def _time_parts(self, budget_s: float) -> Iterator[str]:
        question, judge = self.question, self.judge
        self._parts = race = PartRace(judge.space, question.resolution, question.settings, judge.macs, budget_s)
        yield from race.run()
        judge.times = race.times()
        self._ban({part: f"has no measured time, since {reason}" for part, reason in race.left_out.items()})

    def _predict_parts(self, machine: Machine) -> Iterator[str]:
        question = self.question
        prediction = PartPrediction(self.judge.space, question.resolution, question.settings, machine)
        yield from prediction.run()
        self.judge.times = prediction.times()
        kind = "its measured ceilings" if machine.measured else "data sheets; nothing is measured there"
        self._remarks.append(f"Latency is predicted for {machine.name} from {kind}, and not confirmed by whole models.")
        if prediction.uncounted:
            self._remarks.append(f"Work that is in no predicted time: {', '.join(sorted(prediction.uncounted))}.")

    def _ban(self, reasons: dict[tuple[int, str], str]) -> None:
        """Leave layers out of the search, and say so."""
        self.judge.space = replace(self.judge.space, bans=self.judge.space.bans | set(reasons))
        self._remarks += [f"{part_name(part)} {reason}: left out of the search." for part, reason in reasons.items()]

    def _measure_areas(self) -> Iterator[str]:
        """The receptive fields of known patterns and of the front of the longest run: too slow for more."""
        if self.question.score != AREA:
            return
        for letters in dict.fromkeys((*self.judge.runs(), *self._known)):
            pattern = self.judge.space.pattern(letters)
            yield f"measuring the receptive field of {pattern}"
            area = effective_area(self.question.spec.with_pattern(pattern), self.question.resolution)
            self.judge.listed[letters] = area

    def _find(self) -> Iterator[str]:
        judge = self.judge
        most_bytes = self.question.budgets.memory_bytes
        if most_bytes is not None:
            yield "predicting the memory of every kind of layer"
            self._ban(self._too_large(most_bytes))
        yield f"searching {judge.space.size:,} patterns"
        start = time.perf_counter()
        found = judge.search()
        self._searched_s = time.perf_counter() - start
        if most_bytes is not None:
            for option in found:
                yield f"predicting the memory of {option.pattern}"
                self._peak(option.pattern)
            found = self._fitting([self._detailed(option) for option in found])
        self._limit = None if self.question.budgets.any else judge.option(judge.space.own_letters).cost(judge.cost)
        yield "predicting memory"
        chosen = self._choose(found)
        shown = {option.pattern for option in (*thinned(found, MOST_SHOWN), *filter(None, [chosen]))}
        self._front = tuple(self._detailed(option) if option.pattern in shown else option for option in found)
        self._references = tuple(self._detailed(judge.option(letters)) for letters in self._known)

    def _fitting(self, front: Sequence[Option]) -> tuple[Option, ...]:
        """Those that fit in the memory, which is no sum over layers and is looked at last."""
        kept = tuple(option for option in front if option.within)
        if len(kept) < len(front):
            dropped = ", ".join(option.pattern for option in front if option not in kept)
            self._remarks.append(f"Dropped from the front, since they need more memory: {dropped}.")
        return kept

    def _choose(self, front: Sequence[Option]) -> Option | None:
        """The farthest reach; without a budget, at no more than the own pattern's cost."""
        costs = [(option, option.cost(self.judge.cost)) for option in front]
        within = [option for option, cost in costs if self._limit is None or (cost is not None and cost <= self._limit)]
        return within[-1] if within else None

    def _too_large(self, most_bytes: float) -> dict[tuple[int, str], str]:
        """Kinds of layers of which one alone needs more memory than there is, whichever kind all others are."""
        space = self.judge.space
        needed: dict[tuple[int, str], int] = {}
        for place in space.places:
            for letter in space.choices(place):
                part = (place.stage, letter)
                if part not in needed:
                    needed[part] = min(self._peak(pattern).total_bytes for pattern in space.single(place, letter))
        return {
            part: f"needs {size / 2**20:,.0f} MiB, more than the memory"
            for part, size in needed.items()
            if size > most_bytes
        }

    def _peak(self, pattern: str) -> PeakMemory:
        if pattern not in self._memory:
            workload = build(self.question.spec.with_pattern(pattern), self.question.settings, "meta")
            self._memory[pattern] = predict_peak(workload, self.question.resolution)
        return self._memory[pattern]

    def _detailed(self, option: Option) -> Option:
        """With its names and its memory."""
        names = self._known.get(self.judge.space.read(option.pattern), ())
        found = replace(option, names=names, memory=self._peak(option.pattern))
        return found.judged(self.question.budgets)

    def _confirm(self, budget_s: float) -> Iterator[str]:
        """The corners of the front: its ends, the chosen pattern, and the backbone's own."""
        ends = [*self._front[:1], *filter(None, [self._choose(self._front)]), *self._front[-1:]]
        options = {option.pattern: option for option in (*ends, self._own())}
        known = [option for option in options.values() if option.latency_s is not None]
        question = self.question
        self._confirming = Confirming(question.spec, known, question.resolution, question.settings, budget_s)
        yield from self._confirming.run()

    def _own(self) -> Option:
        return self._detailed(self.judge.option(self.judge.space.own_letters))

    def finish(self) -> None:
        """Search with the costs that are known when measuring was interrupted; MACs if need be."""
        self.interrupted = True
        if self._parts is not None and self.judge.times is None:
            self.judge.times = self._parts.times()
            if self.judge.times is None and self.question.budgets.latency_s is not None:
                self._remarks.append("Interrupted before every layer was timed: the limit of latency is not kept.")
        if not self._front:
            for _ in self._find():
                pass

    def result(self) -> Placement:
        """What is known by now."""
        judge = self.judge
        on_front = {option.pattern for option in self._front}
        front = tuple(replace(option, names=self._names(option), on_front=True) for option in self._front)
        times = {} if judge.times is None else judge.times.latencies
        return Placement(
            question=self.question,
            score=judge.kind,
            cost=judge.cost,
            size=judge.space.size,
            front=front,
            references=tuple(replace(option, on_front=option.pattern in on_front) for option in self._references),
            own=self._own(),
            chosen=self._choose(front),
            limit=self._limit,
            swaps=tuple(Swap(swap, self._detailed(judge.option(letters))) for swap, letters in self._swapped.items()),
            confirmations=() if self._confirming is None else self._confirming.found(),
            parts={part_name(part): latency for part, latency in times.items()},
            remarks=tuple(dict.fromkeys(self._remarks)),
            environment=self._environment,
            started=self._started,
            searched_s=self._searched_s,
            interrupted=self.interrupted,
        )

    def _names(self, option: Option) -> tuple[str, ...]:
        return self._known.get(self.judge.space.read(option.pattern), ())


def thinned(options: Sequence[Option], most: int) -> list[Option]:
    """At most so many options, evenly spread, with both ends."""
    if len(options) <= most:
        return list(options)
    places = {round(index * (len(options) - 1) / (most - 1)) for index in range(most)}
    return [options[place] for place in sorted(places)]
