"""LayerNorm of the backbones: the compiled operator where there is one, PyTorch's elsewhere."""

# B batch, N tokens, C channels

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sola_vision import ops
from sola_vision.ops.layer_norm import suits


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` with ``ops.layer_norm`` in it, for tokens ``(B, N, C)``; the same parameters by the same names.

    Under ``torch.compile`` and ``torch.export`` it is PyTorch's: a compiler joins that one with its neighbours.
    """

    def forward(self, x: Tensor) -> Tensor:
        return normalised(x, self.normalized_shape, self.weight, self.bias, self.eps)


# a tracer of torch.fx has no dtypes to look at
@torch.fx.wrap
def normalised(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm of what ``nn.LayerNorm`` takes."""
    if weight is None or bias is None or torch.compiler.is_compiling() or not suits(x, weight, bias):
        return F.layer_norm(x, shape, weight, bias, eps)
    return ops.layer_norm(x, weight, bias, eps=eps)
