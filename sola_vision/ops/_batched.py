"""``torch.vmap`` for operators that take or return lists of tensors, which torch's own loop over examples leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def one_by_one(name: str) -> None:
    """Let ``torch.vmap`` run an operator example by example, as it does with all others of ours."""
    packet = getattr(torch.ops.sola, name)

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        runs = [packet.default(*map(_chosen, args, in_dims, [i] * len(args))) for i in range(info.batch_size)]
        stacked = [torch.stack(parts) for parts in zip(*runs, strict=True)]
        # a list of tensors comes back as a list
        kind = type(runs[0])
        return kind(stacked), kind([0] * len(stacked))

    torch.library.register_vmap(f"sola::{name}", rule)


def _chosen(arg: Any, dim: Any, index: int) -> Any:
    """An argument of example ``index``; ``dim``: where the examples lie, None for what they share."""
    if dim is None:
        return arg
    if isinstance(arg, Tensor):
        return arg.select(dim, index)
    return [_chosen(each, where, index) for each, where in zip(arg, dim, strict=True)]
