"""How far a pattern reaches, as scores that can be followed layer by layer.

A score starts from ``start`` and takes the layers in the order they run; it keeps a state, all that later layers need to
know, and a loss: a whole number that never falls. The best pattern has the least loss.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from math import inf, log, sqrt
from typing import Protocol

from sola_profile.study.space import Space

RUN, HORIZON = "run", "horizon"
# the share of its peak at which a Gaussian kernel counts as forgotten
EPSILON = 0.01
# reach is kept in whole billionths, so that sums are exact and the same in any order
UNIT = 10**9


class Score(Protocol):
    """See the module."""

    @property
    def start(self) -> Hashable:
        """The state before the first layer."""

    def step(self, state: Hashable, loss: int, index: int, letter: str) -> tuple[Hashable, int]:
        """State and loss after the layer at ``index`` (from 0) with this letter."""

    def value(self, loss: int) -> float:
        """What a loss means to a reader."""


def loss_of(score: Score, letters: str) -> int:
    """The loss of a whole pattern."""
    state, loss = score.start, 0
    for index, letter in enumerate(letters):
        state, loss = score.step(state, loss, index, letter)
    return loss


@dataclass(frozen=True)
class LongestRun:
    """The longest run of consecutive linear layers: what has to be carried by decaying kernels alone. Fewer is better."""

    is_softmax: Callable[[str], bool]
    start: Hashable = 0

    def step(self, state: Hashable, loss: int, index: int, letter: str) -> tuple[Hashable, int]:
        """``state``: linear layers since the last softmax one."""
        assert isinstance(state, int)
        del index
        run = 0 if self.is_softmax(letter) else state + 1
        return run, max(loss, run)

    def value(self, loss: int) -> float:
        """In layers."""
        return float(loss)


@dataclass
class MeanReach:
    """How much of the image is reached from one layer to another, averaged over all pairs of layers.

    For layers a ≤ b the reach is 1 when a layer from a to b reaches everything, else ``min(1, ξ)`` with
    ``ξ = √(2 ln(1/ε) Σ_l s_l²)`` over the layers from a to b: the distance, in heights of the image, at which a Gaussian
    kernel of that variance has fallen to ε of its peak. ``variances``: (index, letter) → ``s_l²`` in squared heights of the
    image; infinite for a layer that reaches everything. More is better. Source: SoLA-Vision, arXiv 2601.11164, eqs. 6 and 7.
    """

    variances: Mapping[tuple[int, str], float]
    layers: int
    epsilon: float = EPSILON
    start: Hashable = ""
    _known: dict[tuple[int, str], tuple[str, int]] = field(default_factory=dict)

    def step(self, state: Hashable, loss: int, index: int, letter: str) -> tuple[Hashable, int]:
        """``state``: the letters since the last layer that reaches everything."""
        assert isinstance(state, str)
        run = state + letter
        if (index, run) not in self._known:
            self._known[index, run] = self._extended(index, run)
        kept, added = self._known[index, run]
        return kept, loss + added

    def _extended(self, index: int, run: str) -> tuple[str, int]:
        """The run to remember, and what is missing to the whole image from each of its layers to the last."""
        variance, missing = 0.0, 0
        for back, letter in enumerate(reversed(run)):
            variance += self.variances[index - back, letter]
            reach = horizon(variance, self.epsilon)
            if reach >= 1:
                # from earlier layers the whole image is reached too, whatever follows
                return run[len(run) - back :], missing
            missing += round(UNIT * (1 - reach))
        return run, missing

    def value(self, loss: int) -> float:
        """Between 0 and 1."""
        return 1 - loss / UNIT / (self.layers * (self.layers + 1) / 2)


def horizon(variance: float, epsilon: float = EPSILON) -> float:
    """``ξ = σ √(2 ln(1/ε))``: where a Gaussian of this variance has fallen to ε of its peak."""
    return inf if variance == inf else sqrt(2 * variance * log(1 / epsilon))


def mean_reach(space: Space, variances: Mapping[tuple[int, str], float]) -> MeanReach:
    """The score of the patterns of a space."""
    return MeanReach(variances, len(space.places))
