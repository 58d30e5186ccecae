"""The patterns that a placement may choose from, and what each of their layers costs.

Every cost of a pattern is a sum: of what all patterns share (embedding, mergings, head), of its layers, each by stage and
letter alone, and of the bridges that fit. Costs are integers, so that sums are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from sola_profile.case import Resolution
from sola_vision.backbone_terms import Piece, spec_terms
from sola_vision.layers.mixers import mixer_class
from sola_vision.pattern import format_pattern, parse_pattern
from sola_vision.spec import BackboneSpec, Bridge, LayerId

SOFTMAX = "softmax"
MACS, LATENCY, SOFTMAX_LAYERS = "macs", "latency_ns", "softmax_layers"


@dataclass(frozen=True)
class Space:
    """Every pattern of a backbone's depths; ``stages``: those whose layers are free, the others keep their letters.

    ``spec``: gives widths, depths, mixers and the bridges to keep where they fit. ``letters``: that a free layer may
    have; all of the spec's unless given. ``bans``: (stage, letter) that no layer may have. ``own``: the pattern before
    anything is changed, as letters in ``own_letters``; the spec's unless given.
    """

    spec: BackboneSpec
    stages: tuple[int, ...] = (1, 2, 3, 4)
    letters: tuple[str, ...] = ()
    bans: frozenset[tuple[int, str]] = frozenset()
    own: str = ""
    own_letters: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "own_letters", self.read(self.own or self.spec.pattern))
        if not self.letters:
            object.__setattr__(self, "letters", tuple(self.spec.mixers))
        for letter in self.letters:
            if letter not in self.spec.mixers:
                raise ValueError(f"letters: expected some of {', '.join(self.spec.mixers)}, got {letter!r}")
        for stage in self.stages:
            if not 1 <= stage <= len(self.spec.dims):
                raise ValueError(f"stages: expected numbers from 1 to {len(self.spec.dims)}, got {stage}")

    @property
    def places(self) -> tuple[LayerId, ...]:
        """All layers in the order they run."""
        return tuple(layer.id for layer in self.spec.layers())

    def choices(self, place: LayerId) -> tuple[str, ...]:
        """The letters that a layer may have."""
        letters = self.letters if place.stage in self.stages else (self.own_letters[self.places.index(place)],)
        return tuple(letter for letter in letters if (place.stage, letter) not in self.bans)

    @property
    def letters_used(self) -> tuple[str, ...]:
        """The letters that some layer may have."""
        return tuple(dict.fromkeys(letter for place in self.places for letter in self.choices(place)))

    @property
    def size(self) -> int:
        """How many patterns there are."""
        return prod(len(self.choices(place)) for place in self.places)

    def is_softmax(self, letter: str) -> bool:
        """Whether a letter stands for a mixer that is quadratic in the tokens and reaches all of them."""
        return mixer_class(self.spec.mixers[letter].name).kind == SOFTMAX

    def pattern(self, letters: Sequence[str]) -> str:
        """One letter per layer as a pattern with its stages."""
        rest = iter(letters)
        return format_pattern(["".join(next(rest) for _ in range(depth)) for depth in self.spec.depths])

    def read(self, pattern: str) -> str:
        """The letters of a pattern, one per layer; raises ``PatternError`` when it doesn't fit the backbone."""
        return "".join(parse_pattern(pattern, depths=self.spec.depths, letters=self.spec.mixers))

    def holds(self, letters: str) -> bool:
        """Whether every layer of a pattern has one of its choices."""
        return all(letter in self.choices(place) for place, letter in zip(self.places, letters, strict=True))

    def single(self, place: LayerId, letter: str) -> Iterator[str]:
        """Patterns with a letter at one place and, as far as they may, one and the same letter at all others."""
        for filler in self.letters:
            rest = (self.choices(other) for other in self.places)
            filled = (filler if filler in choices else choices[0] for choices in rest)
            yield self.pattern(
                [letter if other == place else fill for other, fill in zip(self.places, filled, strict=True)]
            )

    def swapped(self, letters: str, swap: str) -> str:
        """The letters after a change such as ``3.4=S``; raises ``ValueError``."""
        place, equals, letter = swap.replace(" ", "").partition("=")
        if not equals:
            raise ValueError(f"swaps: expected stage.layer=letter such as 3.4=S, got {swap!r}")
        if letter not in self.spec.mixers:
            raise ValueError(f"swaps: {letter!r} names no mixer; expected one of {', '.join(self.spec.mixers)}")
        index = self.places.index(self.spec.layer(place).id)
        return letters[:index] + letter + letters[index + 1 :]

    def fits(self, bridge: Bridge, letters: str) -> bool:
        """Whether a bridge of the spec is kept under a pattern, as ``BackboneSpec.with_pattern`` decides."""
        source, target = (self._mixer(end, letters) for end in (bridge.source, bridge.target))
        return source != SOFTMAX and target == SOFTMAX

    def _mixer(self, place: LayerId, letters: str) -> str:
        return self.spec.mixers[letters[self.places.index(place)]].name


@dataclass(frozen=True)
class Costs:
    """A cost of every pattern as a sum of integers.

    ``shared``: of what all patterns have. ``layers``: (stage, letter) → cost of such a layer. ``bridges``: by bridge.
    """

    shared: int = 0
    layers: Mapping[tuple[int, str], int] = field(default_factory=dict)
    bridges: Mapping[Bridge, int] = field(default_factory=dict)

    def of(self, space: Space, letters: str) -> int:
        """The cost of one pattern."""
        layers = sum(self.layers[place.stage, letter] for place, letter in zip(space.places, letters, strict=True))
        bridges = sum(cost for bridge, cost in self.bridges.items() if space.fits(bridge, letters))
        return self.shared + layers + bridges


def macs(space: Space, resolution: Resolution, batch: int) -> Costs:
    """Multiply-accumulates of a batch, forward, from the closed form."""
    layers: dict[tuple[int, str], int] = {}
    shared = 0
    for letter in space.spec.mixers:
        uniform = replace(space.spec, pattern="|".join(letter * depth for depth in space.spec.depths), bridges=())
        pieces = spec_terms(uniform, resolution.height, resolution.width)
        stages = range(1, len(space.spec.dims) + 1)
        layers.update({(stage, letter): batch * _macs(pieces, LayerId(stage, 1)) for stage in stages})
        shared = batch * sum(piece.terms.total_macs for piece in pieces if not isinstance(piece.place, LayerId))
    return Costs(shared, layers, _bridge_macs(space, resolution, batch))


def _macs(pieces: Sequence[Piece], place: LayerId | str) -> int:
    return sum(int(piece.terms.total_macs) for piece in pieces if piece.place == place)


def _bridge_macs(space: Space, resolution: Resolution, batch: int) -> dict[Bridge, int]:
    pieces = spec_terms(space.spec, resolution.height, resolution.width)
    return {bridge: batch * _macs(pieces, str(bridge)) for bridge in space.spec.bridges}


def softmax_layers(space: Space) -> Costs:
    """How many layers are softmax."""
    stages = range(1, len(space.spec.dims) + 1)
    return Costs(
        layers={(stage, letter): int(space.is_softmax(letter)) for stage in stages for letter in space.spec.mixers}
    )
