"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """While training, zeroes the whole branch of an image with probability ``rate`` and scales the others up.

    ``y = x · b / (1 − rate)``, ``b ~ Bernoulli(1 − rate)`` per image, so the expectation is kept; the identity in
    evaluation. Source: Huang et al., arXiv 1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path: expected a rate in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        shape = (x.size(0), *[1] * (x.dim() - 1))
        return x * x.new_empty(shape).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"
