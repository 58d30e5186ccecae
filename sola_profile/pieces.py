"""The pieces of a backbone as the profile shows them: kinds, where each piece lives in the module, and what may have hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from sola_vision.backbone_terms import KINDS, spec_terms
from sola_vision.layers.bridge import bridge_name
from sola_vision.layers.channel_mix import ChannelMix
from sola_vision.spec import BackboneSpec, LayerId

__all__ = ["KINDS", "PieceModule", "called_modules", "piece_modules"]


class PieceModule(NamedTuple):
    """A piece with the path of the module that does its products, and of the module whose call begins it."""

    name: str
    kind: str
    path: str
    begins: str


def piece_modules(spec: BackboneSpec | None) -> list[PieceModule]:
    """All pieces of a backbone in the order of ``spec_terms``; none of a model that has no spec.

    A layer's norms have no products of their own; its mixer begins with the first and its channel mix with the second.
    """
    if spec is None:
        return []
    bridges: Mapping[str, str] = {str(bridge): f"bridges.{bridge_name(bridge)}" for bridge in spec.bridges}
    # a one-pixel image has the same pieces as any other
    return [_locate(piece.place, piece.kind, bridges) for piece in spec_terms(spec, 1, 1)]


def called_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules that a forward pass calls, and goes on as before when they have hooks.

    The maps of a channel mix are left out: it hands their weights to one operator, unless a hook on a map wants to be
    called, and then what is measured is not what runs.
    """
    maps = {
        id(part)
        for module in model.modules()
        if isinstance(module, ChannelMix)
        for part in (module.key, module.value, module.receptance)
    }
    for path, module in model.named_modules():
        if id(module) not in maps:
            yield path, module


def _locate(place: LayerId | str, kind: str, bridges: Mapping[str, str]) -> PieceModule:
    if isinstance(place, LayerId):
        block = f"stages.{place.stage - 1}.blocks.{place.layer - 1}"
        part, norm = ("channel_mix", "norm2") if kind == "channel mix" else ("mixer", "norm1")
        return PieceModule(f"{place} {kind}", kind, f"{block}.{part}", f"{block}.{norm}")
    path = bridges.get(place, place)
    if kind == "merging":
        path = f"stages.{int(place.removeprefix('merging ')) - 1}.merging"
    return PieceModule(place, kind, path, path)
