"""The sigmoid gate of the WKV layer and the channel mix."""

from __future__ import annotations

from torch import Tensor


def gated(gate: Tensor, x: Tensor) -> Tensor:
    """``sigmoid(gate) ⊙ x``, written over ``gate``, which must be the caller's own.

    With gradients the product needs memory of its own, since both factors are kept.
    """
    share = gate.sigmoid_()
    return share * x if share.requires_grad or x.requires_grad else share.mul_(x)
