"""Mixup and CutMix: images of a batch mixed in pairs, and their labels by the same share."""

# B batch, S side in pixels

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sola_vision.train.config import Regularisation


def mix(
    images: Tensor, labels: Tensor, classes: int, settings: Regularisation, numbers: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """The batch with each image mixed with its mirror place's, and targets ``(B, classes)``; labels where both are off.

    Mixup: ``x = λ·a + (1 - λ)·b``. CutMix: a box of b of area ``1 - λ`` in a, λ then being the share of a that is left.
    λ ~ Beta(α, α) for the whole batch, targets ``λ·a + (1 - λ)·b``. With both on, each batch takes one of them.
    Sources: Zhang et al., arXiv 1710.09412; Yun et al., arXiv 1905.04899.
    """
    if not (settings.mixup or settings.cutmix):
        return images, labels
    cut = bool(settings.cutmix) and (not settings.mixup or numbers.random() < 0.5)
    alpha = settings.cutmix if cut else settings.mixup
    share = float(numbers.beta(alpha, alpha))
    other = images.flip(0)
    if cut:
        top, bottom, left, right = _box(images.shape[-2:], 1 - share, numbers)
        images = images.clone()
        images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.size(-2) * images.size(-1))
    else:
        images = torch.lerp(other, images, share)
    targets = F.one_hot(labels, classes).to(images.dtype)
    return images, torch.lerp(targets.flip(0), targets, share)


def _box(size: torch.Size, area: float, numbers: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box around a random pixel, cut off at the edges."""
    ends = []
    for side in size:
        middle, half = int(numbers.integers(side)), side * area**0.5 / 2
        ends += [max(round(middle - half), 0), min(round(middle + half), side)]
    return ends[0], ends[1], ends[2], ends[3]
