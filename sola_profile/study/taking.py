"""What goes into every layer of a backbone and comes out of it, taken by hooks during one forward pass."""

# B batch, N tokens, C channels

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from sola_vision.backbone import Backbone, Stage
from sola_vision.layers import Grid
from sola_vision.layers.block import Block
from sola_vision.spec import LayerSpec


@dataclass
class Taken:
    """One layer and its tensors of one pass, ``(B, N, C)`` each.

    ``block_in`` and ``block_out``: of the whole layer. ``mixer_in``: what the mixer was given, behind its norm. ``operator``:
    what the attention operator returned inside it. ``mixer_out``: what the mixer returned.
    """

    layer: LayerSpec
    block: Block
    grid: Grid = (0, 0)
    block_in: Tensor = field(default_factory=lambda: torch.empty(0))
    block_out: Tensor = field(default_factory=lambda: torch.empty(0))
    mixer_in: Tensor = field(default_factory=lambda: torch.empty(0))
    mixer_out: Tensor = field(default_factory=lambda: torch.empty(0))
    operator: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def is_finite(self) -> bool:
        """Whether neither NaN nor infinity went through."""
        return bool(self.block_out.isfinite().all() and self.operator.isfinite().all())

    @property
    def is_softmax(self) -> bool:
        """Whether the layer is quadratic in the tokens."""
        return self.block.mixer.kind == "softmax"


def blocks_of(model: Backbone) -> list[Block]:
    """All layers in the order they run."""
    return [cast(Block, block) for stage in model.stages for block in cast(Stage, stage).blocks]


@contextmanager
def taking(model: Backbone) -> Iterator[list[Taken]]:
    """While the context is open, a forward pass of the model fills in the list, one entry per layer."""
    taken = [Taken(layer, block) for layer, block in zip(model.spec.layers(), blocks_of(model), strict=True)]
    with ExitStack() as stack:
        for each in taken:
            for handle in _hooks(each):
                stack.callback(handle.remove)
        yield taken


def _hooks(taken: Taken) -> Iterator[Any]:
    mixer = taken.block.mixer

    def block(_: nn.Module, inputs: tuple[Any, ...], out: tuple[Tensor, Tensor | None]) -> None:
        taken.block_in, taken.grid = inputs
        taken.block_out = out[0]

    def result(_: nn.Module, inputs: tuple[Any, ...], out: tuple[Tensor, Tensor | None]) -> None:
        taken.mixer_in = inputs[0]
        taken.mixer_out, state = out
        if state is not None:
            taken.operator = state

    def projected(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        taken.operator = inputs[0]

    yield taken.block.register_forward_hook(block)
    # softmax attention hands out no state: what goes into its last map is the operator's result
    if isinstance(output := getattr(mixer, "output", None), nn.Module):
        yield output.register_forward_pre_hook(projected)
    yield mixer.register_forward_hook(result)
