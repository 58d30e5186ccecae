"""AdamW, its learning rate over the steps, and the averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sola_vision.layers.maps import matrix_parameters
from sola_vision.train.config import Optimiser


def learning_rate(optimiser: Optimiser, step: int, steps: int) -> float:
    """The rate of step ``step`` (from 0) of ``steps``.

    ``lr·(step + 1)/warmup`` while warming up, then ``min_lr + (lr - min_lr)·(1 + cos(π·t))/2`` with t from 0 to 1 over
    the rest. Source: Loshchilov and Hutter, arXiv 1608.03983.
    """
    warmup = min(optimiser.warmup, steps)
    if step < warmup:
        return optimiser.lr * (step + 1) / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    return optimiser.min_lr + (optimiser.lr - optimiser.min_lr) * (1 + math.cos(math.pi * share)) / 2


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """The matrices of linear maps and convolutions, which decay, and all other parameters, which don't."""
    matrices = matrix_parameters(model)
    decayed = [parameter for parameter in model.parameters() if id(parameter) in matrices]
    others = [parameter for parameter in model.parameters() if id(parameter) not in matrices]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def build_optimiser(model: nn.Module, optimiser: Optimiser) -> torch.optim.AdamW:
    """AdamW over the model's parameters. Source: Loshchilov and Hutter, arXiv 1711.05101."""
    groups = parameter_groups(model, optimiser.weight_decay)
    return torch.optim.AdamW(groups, lr=optimiser.lr, betas=optimiser.betas, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def average(averaged: Iterable[Tensor], current: Iterable[Tensor], decay: float) -> None:
    """``a ← decay·a + (1 - decay)·w``, in place."""
    # the count of earlier averages is for other kinds of them
    get_ema_multi_avg_fn(decay)(list(averaged), list(current), 0)


def draw_by_fan_in(model: nn.Module) -> None:
    """Draw the matrices anew from a normal of deviation ``1/√fan_in``, so that a layer keeps its input's scale.

    A backbone's own 0.02 is meant for widths of hundreds; at a width of 32 it makes every branch a 9th of its input,
    and products of two places of the image are too small to be learnt from. Source: LeCun et al., Efficient BackProp.
    """
    for part in model.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
