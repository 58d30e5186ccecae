"""The compiled operators of a model replaced by PyTorch, for as long as a block lasts."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
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


# guards the two below; reentrant, since a block may end wherever Python collects garbage
_LOCK = threading.RLock()
# operator → open blocks that replace it, and what the first of them found
_open_blocks: Counter[str] = Counter()
_replaced: dict[str, Function] = {}


@contextmanager
def pytorch_operators() -> Iterator[None]:
    """Run every layer that calls ``sola_vision.ops`` on PyTorch's operators instead, in the whole process.

    Blocks may nest, and overlap in threads and tasks: the first replaces the operators, the last to be left puts them back,
    in whatever order they end. Until then every thread runs PyTorch's, inside a block or not.

    What is exported inside holds none of ours: a model for ONNX, say. WKV's running sums are right for decays of up to
    ``2 · LARGEST_EXPONENT`` a sequence, of either sign (``sola_profile.peers.wkv``).
    """
    with _on_pytorch(BEST):
        yield


@contextmanager
def operators_on(device_type: str) -> Iterator[None]:
    """Run what a layer runs on a kind of device, for a model that is followed without one: on meta, or fake.

    An operator that has no kernels of ours there is PyTorch's, in the whole process as with ``pytorch_operators``. Where
    ours has kernels nothing is replaced, and what other blocks replace stays so.
    """
    with _on_pytorch(() if device_type in COMPILED else ("channel_mix", "layer_norm")):
        yield


@contextmanager
def _on_pytorch(names: Collection[str]) -> Iterator[None]:
    """Some operators replaced until no block is left that wants them so."""
    with _LOCK:
        for name in names:
            _open_blocks[name] += 1
            if name not in _replaced:
                _replaced[name] = getattr(ops, name)
                setattr(ops, name, BEST[name])
    try:
        yield
    finally:
        with _LOCK:
            for name in names:
                _open_blocks[name] -= 1
                if not _open_blocks[name]:
                    setattr(ops, name, _replaced.pop(name))
