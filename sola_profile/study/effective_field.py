"""Effective receptive field of a backbone: which share of the image its centre feels."""

# B batch, H height, W width

from __future__ import annotations

import torch
from torch import Tensor

from sola_profile.case import Resolution
from sola_profile.workload import SEED
from sola_vision.factory import create_model
from sola_vision.spec import BackboneSpec

IMAGES = 2
# the share of the whole gradient that the area must hold
HELD = 0.99


def effective_area(spec: BackboneSpec, resolution: Resolution, images: int = IMAGES, held: float = HELD) -> float:
    """Share of the image that holds ``held`` of the gradient of the last stage's centre, fresh weights, random images.

    The gradient of the positive part of the centre feature with respect to the pixels, its positive part summed over
    channels and images; the area is that of the smallest window about the centre, in the shape of the image, that holds
    the share. Source: RepLKNet, arXiv 2203.06717, without its logarithm.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = create_model(spec, features_only=True).eval()
        image = torch.randn(images, spec.in_channels, resolution.height, resolution.width, requires_grad=True)
    features = model(image)[-1].permute(0, 2, 3, 1)
    return window_share(centre_gradient(features, image), held)


def centre_gradient(features: Tensor, image: Tensor, *, keep: bool = False) -> Tensor:
    """What every pixel has to do with the centre of a feature map: ``(H, W)``, of ``image`` ``(B, channels, H, W)``.

    The gradient of the positive part of the centre of ``features`` ``(B, rows, columns, C)`` with respect to the pixels, its positive
    part summed over channels and images. ``keep``: the graph, for more features of the same pass. Source: RepLKNet, arXiv
    2203.06717.
    """
    centre = features[:, features.size(1) // 2, features.size(2) // 2]
    (gradient,) = torch.autograd.grad(centre.relu().sum(), image, retain_graph=keep)
    return gradient.relu().sum((0, 1))


def window_share(weight: Tensor, held: float) -> float:
    """Area share of the smallest centred window with the proportions of ``weight`` (H, W) that holds so much of it."""
    rows, columns = (_rings(size, max(weight.shape)) for size in weight.shape)
    # pixels leave the window by the later of their two rings
    ring = torch.maximum(rows[:, None], columns[None]).flatten()
    steps = int(ring.max()) + 1
    mass = torch.zeros(steps, dtype=torch.float64).index_add_(0, ring, weight.flatten().double()).cumsum(0)
    area = (
        torch.zeros(steps, dtype=torch.float64)
        .index_add_(0, ring, torch.ones(ring.numel(), dtype=torch.float64))
        .cumsum(0)
    )
    first = int(torch.searchsorted(mass, held * mass[-1]))
    return float(area[min(first, steps - 1)] / area[-1])


def _rings(size: int, longest: int) -> Tensor:
    """How far each row is from the middle, in steps of a window that grows with the image's proportions."""
    distance = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2).abs() * (longest / size)
    return distance.floor().long()
