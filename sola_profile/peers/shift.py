"""Q-Shift and its mixes in plain PyTorch: four padded copies, a join, and one lerp per mix."""

# B batch, H rows, W columns, C channels

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def eager_shift_mix(x: Tensor, ratios: Tensor) -> tuple[Tensor, ...]:
    """Mixes of ``(B, H, W, C)`` with shares ``(K, C)``, in the dtype of ``x``."""
    group = x.size(-1) // 4
    right, left, down, up, rest = x.split([group, group, group, group, x.size(-1) - 4 * group], dim=-1)
    # a negative pad crops: one row or column leaves on one side and zeros enter on the other
    parts = (
        F.pad(right, (0, 0, 1, -1)),
        F.pad(left, (0, 0, -1, 1)),
        F.pad(down, (0, 0, 0, 0, 1, -1)),
        F.pad(up, (0, 0, 0, 0, -1, 1)),
        rest,
    )
    shifted = torch.cat(parts, dim=-1)
    return tuple(torch.lerp(shifted, x, ratio) for ratio in ratios.to(x.dtype).unbind(0))
