"""What operators do that hold no matrix product: by a short table, then by torch's own tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch

# operators without the tags that say so themselves; torch's own tags cover element-wise work and reductions
_KINDS: Mapping[str, tuple[str, ...]] = {
    "normalisation": (
        "layer_norm",
        "native_layer_norm",
        "native_layer_norm_backward",
        "rms_norm",
        "_fused_rms_norm",
        "group_norm",
        "native_group_norm",
        "_native_batch_norm_legit_no_training",
        "_native_batch_norm_legit",
        "native_batch_norm",
    ),
    "softmax": ("softmax", "_softmax", "_softmax_backward_data", "log_softmax", "_log_softmax", "_safe_softmax"),
    "scan": ("cumsum", "cumprod", "logcumsumexp"),
    "sampling": (
        "avg_pool2d",
        "avg_pool2d_backward",
        "adaptive_avg_pool2d",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool2d_backward",
        *(f"upsample_nearest{dims}d" for dims in (1, 2, 3)),
        *(f"_upsample_nearest_exact{dims}d" for dims in (1, 2, 3)),
        "upsample_linear1d",
        "upsample_trilinear3d",
        "upsample_bilinear2d",
        "upsample_bilinear2d_backward",
        "grid_sampler",
        "grid_sampler_2d",
        "grid_sampler_3d",
        "grid_sampler_2d_backward",
        "max_pool2d",
        "max_pool2d_with_indices",
        *(
            "avg_pool3d",
            "max_pool3d_with_indices",
            "_adaptive_avg_pool3d",
            "adaptive_max_pool2d",
            "adaptive_max_pool3d",
        ),
        "upsample_bicubic2d",
        "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa",
    ),
    "copy": (
        *("cat", "roll", "constant_pad_nd", "pad", "index_select", "index", "stack", "repeat", "_to_copy", "flip"),
        *("new_empty", "new_empty_strided", "new_zeros", "empty", "empty_like", "empty_strided", "zeros", "ones"),
        *("ones_like", "zeros_like", "full", "full_like", "arange", "fill_", "zero_", "tensor", "scalar_tensor"),
        *("select_backward", "slice_backward", "unfold_backward", "slice_scatter", "select_scatter", "_reshape_copy"),
        *(
            "clone",
            "copy_",
            "type_as",
            "numpy_T",
            "lift_fresh",
            "set_",
            "contiguous",
            "reshape",
            "unflatten",
            "_unsafe_view",
        ),
        *(
            "broadcast_to",
            "tile",
            "meshgrid",
            "complex",
            "embedding",
            "gather",
            "scatter",
            "tril",
            "triu",
            "eye",
            "one_hot",
            "linspace",
            "_local_scalar_dense",
        ),
    ),
    "view": ("as_strided_", "unsqueeze_", "squeeze_", "transpose_", "t_"),
    "random": ("native_dropout", "bernoulli", "bernoulli_", "rand", "rand_like", "randn", "dropout"),
}


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
