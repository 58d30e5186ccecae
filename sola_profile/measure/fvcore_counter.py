"""The third witness: fvcore, which traces the module and reads shapes off the graph.

It says FLOP and means multiply-accumulate, and it counts norms and resampling too; only its matrix products are taken.
The compiled operators get handles that restate their formulas on shapes read from the trace.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sola_profile.case import Resolution
from sola_profile.measure.counts import Count, uncounted
from sola_profile.measure.tracing import MetaTracing
from sola_profile.pieces import piece_modules
from sola_profile.workload import Workload
from sola_vision.ops.channel_mix import products as mix_products
from sola_vision.ops.linear_attention import chunked_macs
from sola_vision.ops.linear_attention import macs as linear_macs
from sola_vision.ops.softmax_attention import macs as softmax_macs

# its last release scripts a loss function on import, which torch has deprecated since
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".torch.jit.script. is ")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

NAME = "fvcore"

Handle = Callable[[list[Any], list[Any]], int]


def count_forward(workload: Workload, resolution: Resolution) -> Count:
    """Matrix products of a forward pass of a ``meta`` workload, one batch, in total and by piece."""
    paths = {piece.name: piece.path for piece in piece_modules(workload.source.spec)}
    image = workload.image(resolution)
    with workload.place(image):
        return count_module(workload.model, image, paths)


def count_module(module: nn.Module, image: Tensor, pieces: Mapping[str, str] | None = None) -> Count:
    """Matrix products of a forward pass of any module on meta. ``pieces``: name → path of a submodule."""
    with torch.no_grad(), MetaTracing():
        analysis = FlopCountAnalysis(module, (image,)).set_op_handle(**_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_module = analysis.by_module_and_operator()
        skipped = analysis.unsupported_ops()
    macs = {path: _products(operators) for path, operators in by_module.items()}
    by_piece = {name: sum(macs[path].values()) for name, path in (pieces or {}).items()}
    others = {name: int(value) for name, value in by_module[""].items() if name not in MATRIX_PRODUCTS}
    return Count(NAME, macs[""], by_piece, uncounted(skipped), others)


def _products(operators: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(value) for name, value in operators.items() if name in MATRIX_PRODUCTS}


def _softmax_attention(inputs: list[Any], _outputs: list[Any]) -> int:
    q, k, v = (get_shape(value) for value in inputs[:3])
    return int(softmax_macs(q[0], q[1], k[1], q[2], q[3], v[3], causal=inputs[4].toIValue()))


def _linear_attention(inputs: list[Any], _outputs: list[Any]) -> int:
    q, k, v = (get_shape(value) for value in inputs[:3])
    return int(linear_macs(q[0], q[1], k[1], q[2], q[3], v[3]))


def _chunked_linear_attention(inputs: list[Any], _outputs: list[Any]) -> int:
    q, _, v = (get_shape(value) for value in inputs[:3])
    causal, chunk = inputs[5].toIValue(), inputs[8].toIValue()
    return int(chunked_macs(q[0], q[1], q[2], q[3], v[3], causal=causal, chunk=chunk))


def _channel_mix(inputs: list[Any], _outputs: list[Any]) -> int:
    x_k, key = get_shape(inputs[0]), get_shape(inputs[2])
    return int(sum(mix_products(x_k[0] * x_k[1], x_k[2], key[0]).values()))


def _no_product(_inputs: list[Any], _outputs: list[Any]) -> int:
    return 0


_HANDLES: Mapping[str, Handle] = {
    "sola::softmax_attention": _softmax_attention,
    "sola::linear_attention": _linear_attention,
    "sola::chunked_linear_attention": _chunked_linear_attention,
    "sola::wkv": _no_product,
    "sola::shift_mix": _no_product,
    "sola::layer_norm": _no_product,
    "sola::channel_mix": _channel_mix,
}

# as fvcore names them; its handles for norms, pooling and resampling count scalar operations
MATRIX_PRODUCTS = frozenset(
    (
        *("addmm", "bmm", "conv", "einsum", "matmul", "mm", "linear"),
        *(name.partition("::")[2] for name, handle in _HANDLES.items() if handle is not _no_product),
    )
)
