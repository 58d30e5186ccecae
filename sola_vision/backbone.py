"""From a ``BackboneSpec`` to a module."""

# B batch, H height, W width, N tokens, C channels

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sola_vision.features import FeatureInfo
from sola_vision.layers import Grid
from sola_vision.layers.block import Block
from sola_vision.layers.bridge import HiddenStateBridge
from sola_vision.layers.head import Head
from sola_vision.layers.mixers import mixer_class
from sola_vision.layers.patches import PatchEmbedding, PatchMerging
from sola_vision.spec import BackboneSpec, Bridge, LayerId


class Stage(nn.Module):
    """The layers of one resolution, behind a patch merging in all stages but the first."""

    def __init__(self, merging: PatchMerging | None, blocks: list[Block]) -> None:
        super().__init__()
        self.merging = merging
        self.blocks = nn.ModuleList(blocks)


class Backbone(nn.Module):
    """A four-stage backbone that mixes linear and softmax layers.

    ``forward`` takes images ``(B, in_channels, H, W)`` of any size and returns scores ``(B, num_classes)``; with
    ``num_classes=0`` the pooled features ``(B, C)``; with ``features_only`` the list of the four stages' feature
    maps ``(B, C_i, H_i, W_i)``, in channels-last memory and not normalised, described by ``feature_info``.

    Raises ``ValueError`` that names the field of the spec, or the input, what came and what is allowed.
    """

    def __init__(self, spec: BackboneSpec, *, features_only: bool = False) -> None:
        super().__init__()
        _check_sources(spec)
        self.spec = spec
        self.feature_info = FeatureInfo(spec)
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

    def init_weights(self) -> None:
        """Draw all weights anew: maps from a truncated normal of deviation 0.02, mixers by their own rules."""
        self.apply(_init_module)
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        for index, block in enumerate(blocks):
            block.init_weights(index / (len(blocks) - 1))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each layer's input for the backward pass and compute the rest again."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """The names of all parameters but the matrices of linear maps and convolutions; timm's optimisers ask for them."""
        matrices = {id(part.weight) for part in self.modules() if isinstance(part, (nn.Linear, nn.Conv2d))}
        return {name for name, parameter in self.named_parameters() if id(parameter) not in matrices}

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        self._check_image(image)
        x, grid = self.embedding(image)
        sampled: dict[str, Tensor] = {}
        maps = []
        for number, stage in enumerate(self.stages, start=1):
            x, grid = self._run_stage(number, cast(Stage, stage), x, grid, sampled)
            if self.head is None:
                maps.append(_as_map(x, grid))
        return maps if self.head is None else self.head(x)

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

    def _check_image(self, image: Tensor) -> None:
        channels = self.spec.in_channels
        if image.dim() != 4 or image.size(1) != channels:
            raise ValueError(f"image: expected (B, {channels}, H, W), got {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"image: expected a floating-point dtype, got {image.dtype}")
        if image.size(2) < 1 or image.size(3) < 1:
            raise ValueError(f"image: expected at least 1 pixel to a side, got {tuple(image.shape)}")


def bridge_name(bridge: Bridge) -> str:
    """The bridge's key in ``Backbone.bridges``, such as ``1_2_to_3_3``."""
    source, target = bridge.source, bridge.target
    return f"{source.stage}_{source.layer}_to_{target.stage}_{target.layer}"


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


def _init_module(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()


def _as_map(x: Tensor, grid: Grid) -> Tensor:
    """``(B, N, C)`` → ``(B, C, rows, columns)``, a view."""
    return x.view(x.size(0), *grid, x.size(2)).permute(0, 3, 1, 2)
