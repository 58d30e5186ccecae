"""The compiled operators of a model replaced by PyTorch, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sola_profile.peers.attention import eager_linear, fused_softmax
from sola_profile.peers.decay import chunked
from sola_profile.peers.shift import eager_shift_mix
from sola_profile.peers.table import Function
from sola_profile.peers.wkv import cumulative
from sola_vision import ops
from sola_vision.ops.channel_mix import COMPILED
from sola_vision.ops.channel_mix import composed as composed_mix
from sola_vision.ops.layer_norm import composed as composed_norm


def best_linear(
    q: Tensor, k: Tensor, v: Tensor, *, decay: Tensor | None = None, causal: bool = False, **options: Any
) -> Tensor:
    """Two matrix products without decay, chunks with it."""
    if decay is not None:
        return chunked(q, k, v, decay, causal=causal, **options)
    if causal:
        return chunked(q, k, v, q.new_ones(q.size(2)), causal=True, **options)
    return eager_linear(q, k, v, **options)


# operator → its best route in PyTorch
BEST: Mapping[str, Function] = {
    "softmax_attention": fused_softmax,
    "linear_attention": best_linear,
    "wkv": cumulative,
    "shift_mix": eager_shift_mix,
    "channel_mix": composed_mix,
    "layer_norm": composed_norm,
}


@contextmanager
def pytorch_operators() -> Iterator[None]:
    """Run every layer that calls ``sola_vision.ops`` on PyTorch's operators instead; not for two threads at once.

    What is exported inside holds none of ours: a model for ONNX, say. WKV's running sums are right for decays of up to
    ``2 · LARGEST_EXPONENT`` a sequence, of either sign (``sola_profile.peers.wkv``).
    """
    kept = {name: getattr(ops, name) for name in BEST}
    _put(BEST)
    try:
        yield
    finally:
        _put(kept)


@contextmanager
def operators_on(device_type: str) -> Iterator[None]:
    """Run what a layer runs on a kind of device, for a model that is followed without one: on meta, or fake.

    An operator that has no kernels of ours there is PyTorch's.
    """
    elsewhere = {name: BEST[name] for name in ("channel_mix", "layer_norm")}
    kept = {name: getattr(ops, name) for name in elsewhere}
    if device_type not in COMPILED:
        _put(elsewhere)
    try:
        yield
    finally:
        _put(kept)


def _put(functions: Mapping[str, Function]) -> None:
    for name, function in functions.items():
        setattr(ops, name, function)
