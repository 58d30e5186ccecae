"""The closed-form cost of a whole backbone, piece by piece, from its spec alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sola_vision.layers.bridge import HiddenStateBridge
from sola_vision.layers.channel_mix import ChannelMix
from sola_vision.layers.head import Head
from sola_vision.layers.mixers import mixer_class, mixer_options
from sola_vision.layers.patches import PatchEmbedding, PatchMerging
from sola_vision.spec import BackboneSpec, LayerId, LayerSpec
from sola_vision.terms import Terms, elementwise, layer_norm, total

KINDS = ("embedding", "merging", "softmax", "linear", "channel mix", "bridge", "head")


class Piece(NamedTuple):
    """A piece of a backbone: where it stands, what it is (one of ``KINDS``) and what it costs for one image."""

    place: LayerId | str
    kind: str
    terms: Terms


def spec_terms(spec: BackboneSpec, height: int, width: int) -> list[Piece]:
    """All pieces at an image of ``height`` × ``width`` pixels, in the order they run.

    A layer gives two pieces, its mixer and its channel mix, each with its norm and its residual sum. Their
    parameters and MACs add up to exactly those of ``Backbone(spec)``; with ``features_only`` the head is left out.
    """
    return spec_terms_tokens(spec, [rows * columns for rows, columns in spec.token_grids(height, width)])


def spec_terms_tokens(spec: BackboneSpec, tokens: Sequence[Any]) -> list[Piece]:
    """All pieces for a number of tokens per stage, ints or sympy expressions.

    Raises ``ValueError`` when there isn't one number per stage.
    """
    if len(tokens) != len(spec.dims):
        raise ValueError(f"tokens: expected {len(spec.dims)} numbers, one per stage, got {len(tokens)}")
    dims = spec.dims
    pieces = [
        Piece("embedding", "embedding", PatchEmbedding.terms(spec.in_channels, dims[0], spec.patch_size, tokens[0]))
    ]
    for layer in spec.layers():
        stage = layer.id.stage
        count = tokens[stage - 1]
        if layer.id.layer == 1 and stage > 1:
            pieces.append(
                Piece(f"merging {stage}", "merging", PatchMerging.terms(dims[stage - 2], dims[stage - 1], count))
            )
        pieces.extend(_bridge_pieces(spec, layer, tokens))
        pieces.extend(_layer_pieces(spec, layer, count))
    pieces.append(Piece("head", "head", Head.terms(dims[-1], spec.num_classes, tokens[-1])))
    return pieces


def _layer_pieces(spec: BackboneSpec, layer: LayerSpec, tokens: Any) -> list[Piece]:
    mixer = mixer_class(layer.mixer.name)
    around = total(layer_norm(tokens, layer.dim), elementwise(tokens * layer.dim))
    mixing = mixer.terms(layer.dim, layer.heads, tokens, **mixer_options(layer.mixer, spec))
    channel_mix = ChannelMix.terms(layer.dim, spec.mix_ratio, tokens, shift=spec.shift)
    return [
        Piece(layer.id, mixer.kind, around + mixing),
        Piece(layer.id, "channel mix", around + channel_mix),
    ]


def _bridge_pieces(spec: BackboneSpec, layer: LayerSpec, tokens: Sequence[Any]) -> list[Piece]:
    pieces = []
    for bridge in spec.bridges:
        if bridge.target == layer.id:
            source = bridge.source.stage
            terms = HiddenStateBridge.terms(
                spec.dims[source - 1],
                layer.dim,
                layer.id.stage - source,
                tokens[source - 1],
                tokens[layer.id.stage - 1],
            )
            pieces.append(Piece(str(bridge), "bridge", terms))
    return pieces
