"""Steps of the WKV layer and the channel mix that write over what nobody else has."""

from __future__ import annotations

import torch
from torch import Tensor


def gated(gate: Tensor, x: Tensor) -> Tensor:
    """``sigmoid(gate) ⊙ x``; ``gate`` must be the caller's own, and is written over in plain inference."""
    return gate.sigmoid_().mul_(x) if _may_overwrite() else torch.sigmoid(gate) * x


def squared_relu(hidden: Tensor) -> Tensor:
    """``relu(hidden)²``; ``hidden`` must be the caller's own, and is written over in plain inference."""
    return hidden.relu_().square_() if _may_overwrite() else torch.relu(hidden).square()


def _may_overwrite() -> bool:
    """Whether operations may differ from those of training.

    Inside ``torch.vmap`` a tensor that the examples share can't take what differs between them, nor does one know of
    gradients wanted outside; ``torch.jit.trace`` runs again without gradients and wants the same graph.
    """
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or traced)
