"""From the last tokens to class scores."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sola_vision.terms import Terms, elementwise, layer_norm, linear, total


class Head(nn.Module):
    """LayerNorm, mean over tokens, linear map with bias; ``num_classes=0`` stops at the mean.

    ``(B, N, C)`` → ``(B, num_classes)``, or ``(B, C)`` without classes.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.norm(x).mean(1))
        return scores

    @staticmethod
    def terms(dim: int, num_classes: int, tokens: Any) -> Terms:
        """The norm, the mean (one addition per element) and the classifier."""
        classifier = linear("classifier", 1, dim, num_classes, bias=True) if num_classes else Terms()
        return total(layer_norm(tokens, dim), elementwise(tokens * dim), classifier)
