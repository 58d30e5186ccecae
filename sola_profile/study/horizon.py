"""How far a linear layer spreads, from the decays that it is built with."""

# N tokens, C channels

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from sola_profile.case import Resolution
from sola_profile.study.space import Space
from sola_vision.layers.mixers import mixer_class, mixer_options
from sola_vision.layers.mixers.base import Mixer
from sola_vision.layers.mixers.decay import DecayAttention
from sola_vision.layers.mixers.linear import LinearAttention
from sola_vision.layers.mixers.softmax import SoftmaxAttention
from sola_vision.layers.mixers.wkv import WKV
from sola_vision.spec import LayerId


def layer_variances(space: Space, resolution: Resolution) -> dict[tuple[int, str], float]:
    """(index of a layer, letter) → variance of its kernel in squared heights of the image.

    A layer mixes tokens in raster order, where N tokens are the height of the image: a distance of Δ tokens is Δ/N of it.
    The decays are those that a fresh layer at this depth is built with. Raises ``ValueError`` for a mixer whose decays are
    not known here.
    """
    grids = space.spec.token_grids(resolution.height, resolution.width)
    last = max(1, len(space.places) - 1)
    found = {}
    for index, place in enumerate(space.places):
        rows, columns = grids[place.stage - 1]
        for letter in space.spec.mixers:
            mixer = fresh_mixer(space, place, letter, index / last)
            tokens = rows * columns
            try:
                found[index, letter] = kernel_variance(mixer, tokens) / tokens**2
            except ValueError as error:
                raise ValueError(f"score: {error}; use another score than horizon") from error
    return found


def fresh_mixer(space: Space, place: LayerId, letter: str, depth: float) -> Mixer:
    """A layer's mixer with the decays of its depth; its maps are not filled in."""
    layer, mixer = space.spec.layer(place), space.spec.mixers[letter]
    with torch.device("meta"):
        built = mixer_class(mixer.name)(layer.dim, layer.heads, **mixer_options(mixer, space.spec))
    built.to_empty(device="cpu")
    built.init_weights(depth)
    return built


def kernel_variance(mixer: Mixer, tokens: int) -> float:
    """``Σ_Δ Δ² K(Δ) / Σ_Δ K(Δ)`` of a layer in tokens², pooled over its channels; infinite where nothing fades.

    Channels are mixed between layers, so that the kernel of a layer is the mean of its channels' kernels, and its variance
    the mean of theirs.
    """
    found = channel_variances(mixer, tokens)
    return inf if found is None else float(found.mean())


def channel_variances(mixer: Mixer, tokens: int) -> Tensor | None:
    """``Σ_Δ Δ² K(Δ) / Σ_Δ K(Δ)`` of every channel, or head, in tokens²; None where nothing fades.

    Exact and discrete, for the token in the middle of the sequence, so also for channels that hardly fade or favour far
    tokens. Contents count as equal. For a decay of w per token in a long sequence it is ``1/(2 sinh²(w/2))``, about ``2/w²``.
    """
    rates = rates_of(mixer, tokens)
    if rates is None:
        return None
    if isinstance(mixer, WKV):
        # e^{−(|Δ|−1)w} at other tokens, e^u at the token itself
        return _variances(rates, (mixer.bonus.detach().double() - rates).exp(), tokens)
    return _variances(rates, torch.ones_like(rates), tokens)


def rates_of(mixer: Mixer, tokens: int) -> Tensor | None:
    """The decay w per token of every channel, or head; None where nothing fades.

    Raises ``ValueError`` for a mixer whose decays are not known here.
    """
    if isinstance(mixer, (SoftmaxAttention, LinearAttention)):
        return None
    if isinstance(mixer, WKV):
        return mixer.decay.detach().double() / (tokens if mixer.decay_per == "sequence" else 1)
    if isinstance(mixer, DecayAttention):
        return mixer.log_rate.detach().double().exp()
    raise ValueError(f"the decays of {type(mixer).__name__} are not known")


def _variances(rate: Tensor, own: Tensor, tokens: int) -> Tensor:
    """For kernels ``e^{−w|Δ|}`` with ``own`` in place of 1 at Δ = 0."""
    # the middle of an even sequence has one token more before it than behind it
    before = tokens // 2
    behind = tokens - 1 - before
    distance = torch.arange(1, before + 1, dtype=torch.float64)
    sides = 1 + (distance <= behind).double()
    sums = []
    for w, itself in zip(rate.tolist(), own.tolist(), strict=True):
        # scaled by the largest weight, which for a negative rate is the farthest
        scale = max(-w * before, -w)
        weight = sides * torch.exp(-w * distance - scale)
        total = weight.sum() + itself * torch.exp(torch.tensor(-scale, dtype=torch.float64))
        sums.append((weight * distance.square()).sum() / total)
    return torch.stack(sums)
