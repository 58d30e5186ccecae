"""The compiled attention operators and their Python face.

Layout is ``(B, N, H, D)``: batch, tokens, heads, head dim. Importing this package loads ``sola_vision._C``; without
the compiled extension it raises ``ImportError`` with the command that builds it, and nothing falls back to a slower
path.

Gradients are those of ``backward()``, ``torch.autograd.grad`` and ``torch.func`` (``grad``, ``vjp``, ``jacrev``), once:
second derivatives and forward mode raise an error, and so do the derivatives of ``torch.func`` inside ``torch.compile``.
``torch.vmap`` works: examples that share an operator's parameters are one batch, others run in turn; so do the
gradients of ``is_grads_batched``, but for ``shift_mix``, and both together, for the gradients of every example.
"""

import torch as _torch  # noqa: F401  its libraries must be loaded before the extension that links to them

from sola_vision.ops._extension import extension
from sola_vision.ops.channel_mix import channel_mix
from sola_vision.ops.cuda_features import CUDA_FEATURES, cuda_features_off, cuda_without
from sola_vision.ops.layer_norm import layer_norm
from sola_vision.ops.linear_attention import FEATURE_MAPS, linear_attention
from sola_vision.ops.shift_mix import shift_mix
from sola_vision.ops.softmax_attention import softmax_attention
from sola_vision.ops.softmax_backends import SOFTMAX_BACKENDS, current_softmax_backend, softmax_backend
from sola_vision.ops.wkv import wkv

__all__ = [
    "CUDA_FEATURES",
    "FEATURE_MAPS",
    "SOFTMAX_BACKENDS",
    "build_info",
    "channel_mix",
    "cuda_features_off",
    "cuda_without",
    "current_softmax_backend",
    "layer_norm",
    "linear_attention",
    "shift_mix",
    "softmax_attention",
    "softmax_backend",
    "wkv",
]


def build_info() -> dict[str, object]:
    """What was built and what was chosen at load: version, torch, compiler, instruction set, GEMM backend, CUDA targets."""
    return dict(extension.build_info())
