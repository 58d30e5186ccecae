"""Whether a graph is being made of the layers, to be run at other sizes than the example's."""

from __future__ import annotations

import torch


def is_recorded() -> bool:
    """Under torch.compile, torch.export or torch.jit.trace."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
