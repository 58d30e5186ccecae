"""Steps of the WKV layer and the channel mix that write over what autograd doesn't keep."""

from __future__ import annotations

import torch
from torch import Tensor


def gated(gate: Tensor, x: Tensor) -> Tensor:
    """``sigmoid(gate) ⊙ x``, written over ``gate``, which must be the caller's own.

    With gradients the product needs memory of its own, since both factors are kept.
    """
    share = gate.sigmoid_()
    # of gradients wanted outside torch.vmap a tensor inside it doesn't know
    return share * x if torch.is_grad_enabled() else share.mul_(x)


def squared_relu(hidden: Tensor) -> Tensor:
    """``relu(hidden)²``, written over ``hidden``, which must be the caller's own; gradients keep the ReLU."""
    hidden = hidden.relu_()
    return hidden.square() if torch.is_grad_enabled() else hidden.square_()
