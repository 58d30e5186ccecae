"""Frozen descriptions of a backbone: what it is made of, without torch and without weights.

A ``BackboneSpec`` is all that the closed-form cost model, the placement search and the model builder need; the
three agree because they read the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sola_vision.pattern import format_pattern, parse_pattern

STAGES = 4


@dataclass(frozen=True)
class MixerSpec:
    """A token mixer by its name in the mixer table, with the options its constructor takes."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, value: MixerSpec | str | tuple[str, Mapping[str, Any]]) -> MixerSpec:
        """Accept ``"wkv"``, ``("wkv", {"decay_per": "token"})`` or a ``MixerSpec``."""
        if isinstance(value, MixerSpec):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], Mapping):
            if not all(isinstance(key, str) for key in value[1]):
                raise ValueError(f"mixers: expected options by name, got {value!r}")
            return cls(value[0], tuple(sorted(value[1].items())))
        raise TypeError(f"mixers: expected a name or (name, options), got {value!r}")

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options)
        return f"{self.name}({options})" if options else self.name


@dataclass(frozen=True, order=True)
class LayerId:
    """A layer's place, counted from 1 as the paper does: ``3.2`` is the second layer of the third stage."""

    stage: int
    layer: int

    @classmethod
    def of(cls, value: LayerId | str | tuple[int, int]) -> LayerId:
        """Accept ``"3.2"``, ``(3, 2)`` or a ``LayerId``."""
        if isinstance(value, LayerId):
            return value
        parts = value.split(".") if isinstance(value, str) else value
        try:
            stage, layer = (int(part) for part in parts)
        except (TypeError, ValueError):
            raise ValueError(f"layer: expected 'stage.layer' such as '3.2', got {value!r}") from None
        return cls(stage, layer)

    def __str__(self) -> str:
        return f"{self.stage}.{self.layer}"


@dataclass(frozen=True)
class Bridge:
    """A Hidden State Bridge: the state of layer ``source`` is sampled, mapped, gated and added before ``target``."""

    source: LayerId
    target: LayerId

    @classmethod
    def of(cls, value: Bridge | str | tuple[Any, Any]) -> Bridge:
        """Accept ``"1.2->3.3"``, ``("1.2", "3.3")`` or a ``Bridge``."""
        if isinstance(value, Bridge):
            return value
        ends = value.split("->") if isinstance(value, str) else value
        try:
            if not isinstance(ends, (tuple, list)):
                raise ValueError
            source, target = (LayerId.of(_strip(end)) for end in ends)
        except ValueError:
            raise ValueError(f"bridges: expected 'source->target' such as '1.2->3.3', got {value!r}") from None
        return cls(source, target)

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"


def _strip(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a backbone, as the builder and the cost model see it."""

    id: LayerId
    letter: str
    mixer: MixerSpec
    dim: int
    heads: int


@dataclass(frozen=True)
class BackboneSpec:
    """A four-stage backbone: widths, pattern, mixers and bridges.

    ``dims``: channels per stage. ``pattern``: one letter per layer (see ``sola_vision.pattern``); its stages give the
    depths. ``mixers``: letter → mixer. ``bridges``: Hidden State Bridges; the source must come before the target.
    ``mix_ratio``: hidden width of the channel mix over its input width. ``shift``: Q-Shift before the WKV mixer and
    every channel mix. ``drop_path``: stochastic-depth rate of the last layer, rising linearly from 0.

    Raises ``ValueError`` that names the field, what came and what is allowed.
    """

    name: str
    dims: tuple[int, ...]
    pattern: str
    mixers: Mapping[str, MixerSpec] = field(default_factory=lambda: dict(DEFAULT_MIXERS))
    bridges: tuple[Bridge, ...] = ()
    head_dim: int = 32
    mix_ratio: float = 4.0
    shift: bool = True
    patch_size: int = 4
    in_channels: int = 3
    num_classes: int = 1000
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        check_mixers(self.mixers)
        if isinstance(self.dims, str) or not isinstance(self.dims, Iterable):
            raise ValueError(f"dims: expected {STAGES} widths such as (32, 64, 128, 256), got {self.dims!r}")
        set_field(self, "dims", tuple(self.dims))
        set_field(self, "mixers", {key: MixerSpec.of(value) for key, value in sorted(self.mixers.items())})
        set_field(self, "bridges", read_bridges(self.bridges))
        set_field(self, "pattern", format_pattern(parse_pattern(self.pattern, letters=self.mixers)))
        _check_widths(self)
        _check_bridges(self)

    def __hash__(self) -> int:
        return hash((self.name, self.dims, self.pattern, tuple(self.mixers.items()), self.bridges, self.num_classes))

    @property
    def stages(self) -> tuple[str, ...]:
        """The pattern as one string of letters per stage."""
        return tuple(self.pattern.split("|"))

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers per stage."""
        return tuple(len(stage) for stage in self.stages)

    @property
    def stride(self) -> int:
        """Pixels per token of the last stage; sides that divide by it need no padding."""
        return int(self.patch_size * 2 ** (len(self.dims) - 1))

    def layers(self) -> Iterator[LayerSpec]:
        """All layers in the order they run."""
        for stage, (letters, dim) in enumerate(zip(self.stages, self.dims, strict=True), start=1):
            for index, letter in enumerate(letters, start=1):
                yield LayerSpec(LayerId(stage, index), letter, self.mixers[letter], dim, dim // self.head_dim)

    def layer(self, place: LayerId | str) -> LayerSpec:
        """The layer at ``stage.layer``; raises ``ValueError`` when there is none."""
        wanted = LayerId.of(place)
        for layer in self.layers():
            if layer.id == wanted:
                return layer
        raise ValueError(f"layer: {self.name} has no layer {wanted}; its pattern is {self.pattern}")

    def with_pattern(self, pattern: str, *, name: str | None = None) -> BackboneSpec:
        """The same widths and depths under another pattern, with those of its bridges that still fit.

        A bridge fits while both of its layers exist, its source is not a softmax layer and its target is one.
        Raises ``PatternError`` when the pattern doesn't have this backbone's depths or names an unknown letter.
        """
        return self.rewired(pattern=pattern, name=name)

    def rewired(
        self, *, pattern: str | None = None, mixers: Mapping[str, Any] | None = None, name: str | None = None
    ) -> BackboneSpec:
        """``with_pattern``, with other mixers too: ``mixers`` replaces or adds letters, the others stay."""
        if mixers is not None:
            check_mixers(mixers)
        merged = {**self.mixers, **(mixers or {})}
        stages = parse_pattern(self.pattern if pattern is None else pattern, depths=self.depths, letters=merged)
        new_name = self.name if name is None else name
        bare = replace(self, pattern=format_pattern(stages), mixers=merged, bridges=(), name=new_name)
        kept = tuple(bridge for bridge in self.bridges if bridge_problem(bare, bridge) is None)
        return replace(bare, bridges=kept)

    def token_grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Rows and columns of tokens per stage for an image of ``height`` × ``width`` pixels.

        The image is padded to whole patches and every merging pads to even sides, as Swin does, so each side is
        divided rounding up.
        """
        for side, value in (("height", height), ("width", width)):
            if value < 1:
                raise ValueError(f"{side}: expected at least 1 pixel, got {value}")
        rows, columns = -(-height // self.patch_size), -(-width // self.patch_size)
        grids = [(rows, columns)]
        for _ in self.dims[1:]:
            rows, columns = -(-rows // 2), -(-columns // 2)
            grids.append((rows, columns))
        return tuple(grids)


def check_mixers(mixers: Any) -> None:
    """Raise ``TypeError`` unless this is a mapping, and ``ValueError`` unless its keys are letters."""
    if not isinstance(mixers, Mapping):
        raise TypeError(f'mixers: expected a mapping such as {{"L": "wkv"}}, got {mixers!r}')
    for key in mixers:
        if not (isinstance(key, str) and len(key) == 1 and key.isascii() and key.isupper()):
            raise ValueError(f"mixers: a key is one letter A-Z, got {key!r}")


def read_bridges(bridges: Any) -> tuple[Bridge, ...]:
    """Bridges as ``Bridge.of`` takes them; raises ``TypeError`` for one that isn't in a list."""
    if isinstance(bridges, str) or not isinstance(bridges, Iterable):
        raise TypeError(f'bridges: expected a list such as ["1.2->3.3"], got {bridges!r}')
    return tuple(Bridge.of(bridge) for bridge in bridges)


def _check_widths(spec: BackboneSpec) -> None:
    if len(spec.dims) != STAGES:
        raise ValueError(f"dims: expected {STAGES} widths, got {len(spec.dims)}")
    if len(spec.stages) != STAGES:
        raise ValueError(f"pattern: expected {STAGES} stages, got {len(spec.stages)} in {spec.pattern!r}")
    for name, least in (("head_dim", 1), ("patch_size", 1), ("in_channels", 1), ("num_classes", 0)):
        value = getattr(spec, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    for dim in spec.dims:
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1 or dim % spec.head_dim:
            raise ValueError(f"dims: every width must be a positive multiple of head_dim={spec.head_dim}, got {dim!r}")
    check_flag("shift", spec.shift)
    if not (isinstance(spec.drop_path, (int, float)) and 0 <= spec.drop_path < 1):
        raise ValueError(f"drop_path: expected a rate in [0, 1), got {spec.drop_path!r}")
    ratio = spec.mix_ratio
    if isinstance(ratio, bool) or not (isinstance(ratio, (int, float)) and 0 < ratio < float("inf")):
        raise ValueError(f"mix_ratio: expected a positive ratio, got {ratio!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless this is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")


def bridge_problem(spec: BackboneSpec, bridge: Bridge) -> str | None:
    """Why this bridge can't be wired into this backbone, or None."""
    letters = {layer.id: layer.mixer.name for layer in spec.layers()}
    for end, place in (("source", bridge.source), ("target", bridge.target)):
        if place not in letters:
            return f"its {end} {place} is no layer of {spec.pattern}"
    if bridge.source >= bridge.target:
        return "its source must come before its target"
    if letters[bridge.source] == "softmax":
        return f"its source {bridge.source} is a softmax layer, which keeps no state"
    if letters[bridge.target] != "softmax":
        return f"its target {bridge.target} is {letters[bridge.target]}, not softmax"
    return None


def _check_bridges(spec: BackboneSpec) -> None:
    for index, bridge in enumerate(spec.bridges):
        problem = bridge_problem(spec, bridge)
        if problem is None and bridge in spec.bridges[:index]:
            problem = "it is wired twice"
        if problem is not None:
            raise ValueError(f"bridges: {bridge}: {problem}")


DEFAULT_MIXERS: Mapping[str, MixerSpec] = {"L": MixerSpec("wkv"), "S": MixerSpec("softmax")}
