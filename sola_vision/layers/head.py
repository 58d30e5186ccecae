"""From the last tokens to class scores."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from sola_vision.layers.norm import LayerNorm
from sola_vision.layers.weights import draw_weights
from sola_vision.terms import Terms, elementwise, layer_norm, linear, total


class Head(nn.Module):
    """LayerNorm, mean over tokens, linear map with bias; ``num_classes=0`` stops at the mean.

    ``(B, N, C)`` → ``(B, num_classes)``, or ``(B, C)`` without classes. ``drop_rate``: dropout before the linear map.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.drop_rate = 0.0
        self.norm = LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh classifier, with weights as a backbone draws them."""
        like = self.norm.weight
        self.classifier = (
            nn.Linear(like.numel(), num_classes, device=like.device, dtype=like.dtype) if num_classes else nn.Identity()
        )
        draw_weights(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.norm(x).mean(1))

    def classify(self, pooled: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, C)`` → scores, or with ``pre_logits`` what the linear map would take."""
        if self.drop_rate:
            pooled = F.dropout(pooled, self.drop_rate, self.training)
        if pre_logits:
            return pooled
        scores: Tensor = self.classifier(pooled)
        return scores

    @staticmethod
    def terms(dim: int, num_classes: int, tokens: Any) -> Terms:
        """The norm, the mean (one addition per element) and the classifier."""
        classifier = linear("classifier", 1, dim, num_classes, bias=True) if num_classes else Terms()
        return total(layer_norm(tokens, dim), elementwise(tokens * dim), classifier)
