"""The exact front of cost and reach, layer by layer.

Two beginnings of a pattern that leave the same state behind (what the score remembers, and which bridges have a source)
have the same future: whatever follows adds the same to both. So of all beginnings with one state only those are kept that
no other undercuts in cost, loss and everything with a budget at once, and none that could be on the front is lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from sola_profile.study.reach import Score
from sola_profile.study.space import SOFTMAX, Costs, Space
from sola_vision.spec import Bridge

# loss first, then the cost, then the budgeted sums
Label = tuple[int, ...]


@dataclass(frozen=True)
class Bounded:
    """A cost with the most that a pattern may have of it; infinity for no limit."""

    costs: Costs
    most: float = inf


@dataclass(frozen=True)
class Found:
    """A pattern of the front: its letters, its loss and its cost."""

    letters: str
    loss: int
    cost: int


def front(space: Space, score: Score, cost: Bounded, budgets: Sequence[Bounded] = ()) -> tuple[Found, ...]:
    """The patterns within all limits that no other undercuts in cost without losing reach, from cheap to dear.

    Exact. Where several patterns have the same cost and loss, one of them is given, always the same.
    """
    sums = (cost, *budgets)
    start = (0, *(each.costs.shared for each in sums))
    labels: dict[Hashable, dict[Label, str]] = {}
    if _within(start, sums):
        labels = {(score.start, frozenset()): {start: ""}}
    for index in range(len(space.places)):
        labels = _extended(space, score, sums, index, labels)
    finished = _merged([(label[:2], letters) for kept in labels.values() for label, letters in kept.items()])
    return tuple(
        Found(letters, *label) for label, letters in sorted(finished.items(), key=lambda entry: entry[0][::-1])
    )


def _extended(
    space: Space, score: Score, sums: Sequence[Bounded], index: int, labels: Mapping[Hashable, Mapping[Label, str]]
) -> dict[Hashable, dict[Label, str]]:
    """All beginnings with one layer more, without those that are undercut."""
    place = space.places[index]
    reached: dict[Hashable, list[tuple[Label, str]]] = {}
    for letter in space.choices(place):
        is_softmax = space.spec.mixers[letter].name == SOFTMAX
        layer = [each.costs.layers[place.stage, letter] for each in sums]
        for state, kept in labels.items():
            remembered, sources = _unpacked(state)
            ending = [bridge for bridge in sources if bridge.target == place and is_softmax]
            begun = {bridge for bridge in space.spec.bridges if bridge.source == place and not is_softmax}
            bridges = [sum(each.costs.bridges.get(bridge, 0) for bridge in ending) for each in sums]
            open_sources = frozenset(bridge for bridge in sources if bridge.target != place) | begun
            for (loss, *spent), letters in kept.items():
                after, new_loss = score.step(remembered, loss, index, letter)
                added = (new_loss, *(a + b + c for a, b, c in zip(spent, layer, bridges, strict=True)))
                if _within(added, sums):
                    reached.setdefault((after, open_sources), []).append((added, letters + letter))
    return {state: _merged(entries) for state, entries in reached.items()}


def _unpacked(state: Hashable) -> tuple[Hashable, frozenset[Bridge]]:
    assert isinstance(state, tuple)
    remembered, sources = state
    return remembered, sources


def _within(label: Label, sums: Sequence[Bounded]) -> bool:
    return all(spent <= each.most for spent, each in zip(label[1:], sums, strict=True))


def _merged(entries: Sequence[tuple[Label, str]]) -> dict[Label, str]:
    """The labels that no other undercuts."""
    kept: dict[Label, str] = {}
    lowest = inf
    for label, letters in sorted(entries):
        # in this order none can be undercut by a later one
        if len(label) == 2:
            undercut = label[1] >= lowest
            lowest = min(lowest, label[1])
        else:
            undercut = any(all(a <= b for a, b in zip(other, label, strict=True)) for other in kept)
        if not undercut:
            kept[label] = letters
    return kept
