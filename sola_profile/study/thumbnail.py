"""Maps over an image, small enough to keep and to draw."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

# points to a side of a map that is kept
SIDE = 32


def thumbnail(weight: Tensor) -> Tensor:
    """``(H, W)`` at most 32 points to a side, each the mean of what it stands for, as shares of the largest magnitude."""
    side = (min(SIDE, weight.size(0)), min(SIDE, weight.size(1)))
    small = F.adaptive_avg_pool2d(weight[None, None], side)[0, 0]
    largest = small.abs().max()
    return small / largest if largest > 0 else small
