"""``torch.vmap`` of our operators: examples that share their parameters are one larger batch, others run one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def examples_in_turn(name: str) -> None:
    """Let ``torch.vmap`` run an operator example by example; its own loop warns, and leaves out lists of tensors."""
    packet = getattr(torch.ops.sola, name)

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        return _in_turn(packet.default, info.batch_size, in_dims, args)

    torch.library.register_vmap(f"sola::{name}", rule)


def examples_as_batch(name: str, tokens: int, batch_dims: Sequence[int]) -> None:
    """Let ``torch.vmap`` join its examples with the batch of an operator whose other arguments they share.

    ``tokens``: so many leading arguments are tensors that begin with the batch. ``batch_dims``: where the batch lies
    in each result; for a list of any length in all of them.
    """
    packet = getattr(torch.ops.sola, name)

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        if any(dim is not None for dim in in_dims[tokens:]):
            return _in_turn(packet.default, info.batch_size, in_dims, args)
        joined = [_joined(arg, dim, info.batch_size) for arg, dim in zip(args[:tokens], in_dims, strict=False)]
        results = packet.default(*joined, *args[tokens:])
        if isinstance(results, Tensor):
            return _parted(results, batch_dims[0], info.batch_size), batch_dims[0]
        kind = type(results)
        dims = [*batch_dims] * (len(results) // len(batch_dims))
        return kind(_parted(each, dim, info.batch_size) for each, dim in zip(results, dims, strict=True)), kind(dims)

    torch.library.register_vmap(f"sola::{name}", rule)


def _in_turn(op: Any, examples: int, in_dims: Sequence[Any], args: Sequence[Any]) -> tuple[Any, Any]:
    runs = [op(*map(_chosen, args, in_dims, [index] * len(args))) for index in range(examples)]
    if isinstance(runs[0], Tensor):
        return torch.stack(runs), 0
    stacked = [torch.stack(parts) for parts in zip(*runs, strict=True)]
    # a list of tensors comes back as a list
    kind = type(runs[0])
    return kind(stacked), kind([0] * len(stacked))


def _chosen(arg: Any, dim: Any, index: int) -> Any:
    """An argument of example ``index``; ``dim``: where the examples lie, None for what they share."""
    if dim is None:
        return arg
    if isinstance(arg, Tensor):
        return arg.select(dim, index)
    return [_chosen(each, where, index) for each, where in zip(arg, dim, strict=True)]


def _joined(tensor: Tensor, dim: int | None, examples: int) -> Tensor:
    """``(B, …)`` of every example → ``(examples · B, …)``."""
    each = tensor.expand(examples, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return each.flatten(0, 1)


def _parted(tensor: Tensor, dim: int, examples: int) -> Tensor:
    """``(…, examples · B, …)`` → ``(…, examples, B, …)``."""
    parts: Tensor = tensor.unflatten(dim, (examples, tensor.size(dim) // examples))
    return parts
