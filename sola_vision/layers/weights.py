"""Fresh weights of the modules that are PyTorch's own."""

from __future__ import annotations

from torch import nn


def draw_weights(module: nn.Module) -> None:
    """Maps from a truncated normal of deviation 0.02 without bias, norms that change nothing; others are left alone."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
