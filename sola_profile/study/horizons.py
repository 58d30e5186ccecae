"""The horizon theory for a whole model: its own decays, and decays that are fixed per token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sola_profile.case import Resolution
from sola_profile.study.horizon import fresh_mixer
from sola_profile.study.space import Space
from sola_profile.study.stack_kernel import decays_of, repeated, stack_reaches
from sola_profile.study.study_result import Horizon
from sola_profile.study.taking import blocks_of
from sola_vision.backbone import Backbone
from sola_vision.layers.mixers.base import Mixer
from sola_vision.presets import twins
from sola_vision.spec import BackboneSpec, LayerSpec

OWN, FIXED = "own", "fixed"

Layers = tuple[tuple[LayerSpec, Mixer], ...]


@dataclass(frozen=True)
class Variant:
    """A kind of decay. ``layers``: the model's; ``linear``: the same with fresh linear layers in place of softmax ones."""

    name: str
    spec: BackboneSpec
    layers: Layers
    linear: Layers


def horizon_variants(model: Backbone) -> Iterator[Variant]:
    """The model's own decays; and, where WKV layers have theirs per sequence, fresh ones fixed per token.

    Own decays are per sequence in Vision-RWKV: each layer reaches a share of the image. The theory of stacked kernels is
    about fixed ones.
    """
    spec = model.spec
    own = tuple((layer, block.mixer) for layer, block in zip(spec.layers(), blocks_of(model), strict=True))
    yield Variant(OWN, spec, own, _linear(spec, own))
    fixed = {
        letter: (mixer.name, {**dict(mixer.options), "decay_per": "token"})
        for letter, mixer in spec.mixers.items()
        if mixer.name == "wkv" and dict(mixer.options).get("decay_per", "sequence") == "sequence"
    }
    if fixed:
        rewired = spec.rewired(mixers=fixed)
        fresh = _fresh(rewired)
        yield Variant(FIXED, rewired, fresh, _linear(rewired, fresh))


def _linear(spec: BackboneSpec, layers: Layers) -> Layers:
    """Softmax layers replaced by fresh layers of the linear twin."""
    twin = _fresh(twins(spec)["linear"])
    return tuple(
        other if mixer.kind == "softmax" else (layer, mixer) for (layer, mixer), other in zip(layers, twin, strict=True)
    )


def _fresh(spec: BackboneSpec) -> Layers:
    """Every layer with the decays that it is built with."""
    layers = list(spec.layers())
    last = max(1, len(layers) - 1)
    space = Space(spec)
    return tuple(
        (layer, fresh_mixer(space, layer.id, layer.letter, index / last)) for index, layer in enumerate(layers)
    )


def study_horizon(variant: Variant, size: Resolution) -> Horizon:
    """Decays, reach behind every layer, and and stacks of each stage's layers, at one size."""
    grids = variant.spec.token_grids(size.height, size.width)
    decays = [decays_of(layer, mixer, grids[layer.id.stage - 1]) for layer, mixer in variant.layers]
    stages = [[each for each in variant.linear if each[0].id.stage == number] for number in range(1, len(grids) + 1)]
    stacks = []
    for layers, grid in zip(stages, grids, strict=True):
        stacks.append(repeated(layers[:1], grid))
        if len(layers) > 1:
            stacks.append(repeated(layers, grid))
    return Horizon(
        variant.name,
        size,
        tuple(each for each in decays if each is not None),
        stack_reaches(variant.layers, grids),
        stack_reaches(variant.linear, grids),
        tuple(each for each in stacks if each is not None),
    )
