"""From a ``BackboneSpec`` to a module."""

# B batch, H height, W width, N tokens, C channels

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sola_vision.features import FeatureInfo, stage_indices
from sola_vision.layers import Grid
from sola_vision.layers.block import Block
from sola_vision.layers.bridge import HiddenStateBridge, bridge_name
from sola_vision.layers.head import Head
from sola_vision.layers.mixers import mixer_class
from sola_vision.layers.patches import PatchEmbedding, PatchMerging, as_map
from sola_vision.layers.weights import draw_weights
from sola_vision.spec import BackboneSpec, Bridge, LayerId
from sola_vision.timm_interface import TimmInterface, pretrained_cfg

# what a tracer of torch.fx must keep whole, since its forward asks for numbers: its leaf_modules
LEAF_MODULES = (PatchEmbedding, PatchMerging, Block, HiddenStateBridge, Head)


class Stage(nn.Module):
    """The layers of one resolution, behind a patch merging in all stages but the first."""

    def __init__(self, merging: PatchMerging | None, blocks: list[Block]) -> None:
        super().__init__()
        self.merging = merging
        self.blocks = nn.ModuleList(blocks)


class Backbone(TimmInterface):
    """A four-stage backbone that mixes linear and softmax layers.

    ``forward`` takes images ``(B, in_channels, H, W)`` of any size and returns scores ``(B, num_classes)``; with
    ``num_classes=0`` the pooled features ``(B, C)``; with ``features_only`` the list of the four stages' feature
    maps ``(B, C_i, H_i, W_i)``, in channels-last memory and not normalised, described by ``feature_info``.
    ``out_indices``: only the maps of these stages, counted from 0, or of the last n; what they don't need isn't built.

    Raises ``ValueError`` that names the field of the spec, or the input, what came and what is allowed.
    """

    def __init__(
        self, spec: BackboneSpec, *, features_only: bool = False, out_indices: int | Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(spec, BackboneSpec):
            raise TypeError(f"spec: expected a BackboneSpec, got {spec!r}; create_model takes names")
        _check_sources(spec)
        if out_indices is not None and not features_only:
            raise ValueError(f"out_indices: expected None without features_only=True, got {out_indices!r}")
        self.spec = spec
        self.out_indices = stage_indices("out_indices", out_indices, len(spec.dims))
        self.feature_info = FeatureInfo.of(spec)
        self.pretrained_cfg = self.default_cfg = pretrained_cfg(spec)
        self.global_pool = "avg"
        self.grad_checkpointing = False
        self.embedding = PatchEmbedding(spec.in_channels, spec.dims[0], spec.patch_size)
        self.stages = nn.ModuleList(_stages(spec))
        self.bridges = nn.ModuleDict(
            {
                bridge_name(bridge): HiddenStateBridge(
                    spec.dims[bridge.source.stage - 1],
                    spec.dims[bridge.target.stage - 1],
                    bridge.target.stage - bridge.source.stage,
                )
                for bridge in spec.bridges
            }
        )
        self.head = None if features_only else Head(spec.dims[-1], spec.num_classes)
        self.init_weights()
        if features_only:
            self.prune_intermediate_layers(self.out_indices, prune_norm=True)

    def init_weights(self) -> None:
        """Draw all weights anew: maps from a truncated normal of deviation 0.02, mixers by their own rules."""
        self.apply(draw_weights)
        last = sum(self.spec.depths) - 1
        for index, block in enumerate(module for module in self.modules() if isinstance(module, Block)):
            block.init_weights(index / last)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each layer's input for the backward pass and compute the rest again."""
        self.grad_checkpointing = enable

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        if self.head is None:
            return [as_map(x, grid) for x, grid in self.run_stages(image, self.out_indices)]
        if not self.global_pool:
            return self.forward_features(image)
        [(x, _)] = self.run_stages(image, (len(self.stages) - 1,))
        scores: Tensor = self.head(x)
        return scores

    def run_stages(self, image: Tensor, keep: Collection[int]) -> list[tuple[Tensor, Grid]]:
        check_image(image, self.spec.in_channels)
        x, grid = self.embedding(image)
        sampled: dict[str, Tensor] = {}
        kept = []
        for index in range(max(keep) + 1):
            x, grid = self._run_stage(index + 1, cast(Stage, self.stages[index]), x, grid, sampled)
            if index in keep:
                kept.append((x, grid))
        return kept

    def _run_stage(
        self, number: int, stage: Stage, x: Tensor, grid: Grid, sampled: dict[str, Tensor]
    ) -> tuple[Tensor, Grid]:
        """Merging and layers of one stage; bridges leave their sampled states in ``sampled`` and take them out."""
        if stage.merging is not None:
            x, grid = stage.merging(x, grid)
        for layer_number, block in enumerate(stage.blocks, start=1):
            place = LayerId(number, layer_number)
            for wire in self.spec.bridges:
                if wire.target == place:
                    x = self._bridge(wire)(x, sampled.pop(bridge_name(wire)))
            x, state = self._run_block(block, x, grid)
            for wire in self.spec.bridges:
                if wire.source == place and state is not None:
                    sampled[bridge_name(wire)] = self._bridge(wire).sample(state, grid)
        return x, grid

    def _bridge(self, wire: Bridge) -> HiddenStateBridge:
        return cast(HiddenStateBridge, self.bridges[bridge_name(wire)])

    def _run_block(self, block: nn.Module, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
        if self.grad_checkpointing and torch.is_grad_enabled():
            result = checkpoint(block, x, grid, use_reentrant=False)
        else:
            result = block(x, grid)
        out, state = result
        return out, state


# a tracer of torch.fx has no numbers to check
@torch.fx.wrap
def check_image(image: Tensor, channels: int) -> None:
    """Raise ``ValueError`` for what is no batch of images."""
    if image.dim() != 4 or image.size(1) != channels:
        raise ValueError(f"image: expected (B, {channels}, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise ValueError(f"image: expected a floating-point dtype, got {image.dtype}")
    if image.size(2) < 1 or image.size(3) < 1:
        raise ValueError(f"image: expected at least 1 pixel to a side, got {tuple(image.shape)}")


def _stages(spec: BackboneSpec) -> Iterator[Stage]:
    layers = list(spec.layers())
    sources = {bridge.source for bridge in spec.bridges}
    for number, dim in enumerate(spec.dims, start=1):
        blocks = [
            Block(
                layer,
                spec,
                drop_path=spec.drop_path * index / max(len(layers) - 1, 1),
                keep_state=layer.id in sources,
            )
            for index, layer in enumerate(layers)
            if layer.id.stage == number
        ]
        yield Stage(PatchMerging(spec.dims[number - 2], dim) if number > 1 else None, blocks)


def _check_sources(spec: BackboneSpec) -> None:
    for bridge in spec.bridges:
        name = spec.layer(bridge.source).mixer.name
        if mixer_class(name).kind == "softmax":
            raise ValueError(f"bridges: {bridge}: its source {bridge.source} is {name}, which keeps no state")
