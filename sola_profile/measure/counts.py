"""What an operator counter found: matrix products it counted, and operators it has no formula for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

# operators without the tags that say so themselves; torch's own tags cover element-wise work and reductions
_KINDS: Mapping[str, tuple[str, ...]] = {
    "normalisation": ("layer_norm", "native_layer_norm", "native_layer_norm_backward", "rms_norm", "group_norm"),
    "softmax": ("softmax", "_softmax", "_softmax_backward_data", "log_softmax", "_log_softmax"),
    "sampling": (
        "avg_pool2d",
        "avg_pool2d_backward",
        "adaptive_avg_pool2d",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool2d_backward",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "upsample_bilinear2d_backward",
        "grid_sampler",
        "grid_sampler_2d",
        "grid_sampler_2d_backward",
        "max_pool2d",
    ),
    "copy": (
        *("cat", "roll", "constant_pad_nd", "pad", "index_select", "index", "stack", "repeat", "_to_copy", "flip"),
        *("new_empty", "new_empty_strided", "new_zeros", "empty", "empty_like", "empty_strided", "zeros", "ones"),
        *("ones_like", "zeros_like", "full", "full_like", "arange", "fill_", "zero_", "tensor", "scalar_tensor"),
        *("select_backward", "slice_backward", "unfold_backward", "slice_scatter", "select_scatter", "_reshape_copy"),
        *("copy_", "type_as", "numpy_T", "lift_fresh", "set_", "contiguous", "reshape", "unflatten", "_unsafe_view"),
        *("broadcast_to", "tile", "meshgrid"),
    ),
    "random": ("native_dropout", "bernoulli", "bernoulli_", "rand", "rand_like", "randn", "dropout"),
}


@dataclass(frozen=True)
class Uncounted:
    """An operator that ran without a formula. ``kind`` says why that is right, or is empty when nobody knows."""

    operator: str
    calls: int
    kind: str


@dataclass(frozen=True)
class Count:
    """The matrix products that one witness found, in multiply-accumulates, by operator and by piece of the backbone."""

    witness: str
    macs_by_operator: Mapping[str, int]
    macs_by_piece: Mapping[str, int]
    uncounted: tuple[Uncounted, ...] = ()

    @property
    def macs(self) -> int:
        """All matrix products."""
        return sum(self.macs_by_operator.values())


def uncounted(calls: Mapping[str, int]) -> tuple[Uncounted, ...]:
    """Sorted entries for operators by name, such as ``aten::mul``."""
    return tuple(Uncounted(name, number, operator_kind(name)) for name, number in sorted(calls.items()))


@cache
def operator_kind(name: str) -> str:
    """What an operator without a formula does, when it is known to hold no matrix product; else an empty string.

    ``name`` reads ``namespace::operator``. The answer comes from a short table, then from torch's tags (view,
    element-wise, reduction).
    """
    namespace, _, operator = name.partition("::")
    if namespace not in ("aten", "prims"):
        return ""
    for kind, members in _KINDS.items():
        if operator in members:
            return kind
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    return "" if packet is None else _kind_by_tag([getattr(packet, overload) for overload in packet.overloads()])


def _kind_by_tag(overloads: Sequence[torch._ops.OpOverload]) -> str:
    tests: tuple[tuple[str, Callable[[torch._ops.OpOverload], bool]], ...] = (
        ("view", lambda overload: overload.is_view),
        ("element-wise", lambda overload: torch.Tag.pointwise in overload.tags),
        ("reduction", lambda overload: torch.Tag.reduction in overload.tags),
    )
    return next((kind for kind, test in tests if any(map(test, overloads))), "")
