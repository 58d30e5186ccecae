"""One layer of a backbone: a token mixer and a channel mix, each behind a norm and added to its input."""

from __future__ import annotations

from torch import Tensor, nn

from sola_vision.layers import Grid
from sola_vision.layers.channel_mix import ChannelMix
from sola_vision.layers.drop_path import DropPath
from sola_vision.layers.mixers import mixer_class, mixer_options
from sola_vision.layers.norm import LayerNorm
from sola_vision.spec import BackboneSpec, LayerSpec


class Block(nn.Module):
    """``x ← x + DropPath(mixer(norm(x)))``, then ``x ← x + DropPath(channel_mix(norm(x)))``; ``(B, N, C)``.

    ``keep_state``: whether ``forward`` hands out the mixer's state, for a bridge.
    """

    def __init__(self, layer: LayerSpec, spec: BackboneSpec, *, drop_path: float, keep_state: bool) -> None:
        super().__init__()
        build = mixer_class(layer.mixer.name)
        self.keep_state = keep_state
        self.norm1 = LayerNorm(layer.dim)
        self.mixer = build(layer.dim, layer.heads, **mixer_options(layer.mixer, spec))
        self.norm2 = LayerNorm(layer.dim)
        self.channel_mix = ChannelMix(layer.dim, spec.mix_ratio, shift=spec.shift)
        self.drop_path = DropPath(drop_path)

    def init_weights(self, depth: float) -> None:
        """``depth``: this layer's place in the backbone, from 0 for the first to 1 for the last."""
        self.mixer.init_weights(depth)
        self.channel_mix.init_weights(depth)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
        mixed, state = self.mixer(self.norm1(x), grid)
        x = x + self.drop_path(mixed)
        x = x + self.drop_path(self.channel_mix(self.norm2(x), grid))
        return x, state if self.keep_state else None
