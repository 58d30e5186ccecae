"""The shape rules of the operators, for tensors without data (meta, fake); ``csrc/sizes.h`` holds the same for data.

``tests/test_bad_input.py`` sends every bad call through both and compares the messages.
"""

# B batch, N queries, M keys, H heads, D head dim, V value head dim

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_HEAD_DIM = 256
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def accumulate_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of sums, states and normalisers."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def require(condition: Any, op: str, name: str, wanted: str, got: object) -> None:
    """Raise ``ValueError("op: name must wanted, got got")`` unless the condition holds, also for symbolic sizes."""
    # torch 2.11's compiler can't take the function of a check that it knows to hold
    if condition is not True:
        torch._check_value(condition, lambda: f"{op}: {name} must {wanted}, got {got}")


def require_tensors(op: str, **arguments: Any) -> None:
    """Raise ``TypeError`` for what is no tensor; the dispatcher's own message has a page of schema and no remedy."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def number(op: str, name: str, value: Any, instead: str) -> Any:
    """The argument as the dispatcher takes it; ``TypeError`` for what is no number.

    A tensor would silently get no gradient. ``instead``: what to do with one.
    """
    if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        return value
    if isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a number, got a tensor, which would get no gradient; {instead}")
    if not hasattr(value, "__float__"):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    return float(value)


def check_tensor(op: str, name: str, tensor: Tensor, layout: str) -> None:
    """Rank, dtype and a contiguous last dimension. ``layout`` reads like ``(B, N, H, D)``."""
    rank = layout.count(",") + 1
    require(tensor.dim() == rank, op, name, f"be {layout}, {rank} dimensions", tensor.dim())
    floats = ", ".join(map(dtype_name, FLOATS))
    require(tensor.dtype in FLOATS, op, name, f"be one of {floats}", dtype_name(tensor.dtype))
    dense = tensor.stride(-1) == 1 or tensor.size(-1) <= 1
    require(
        dense,
        op,
        name,
        "be contiguous in its last dimension",
        f"stride {tensor.stride(-1)}; call {name}.contiguous() first",
    )


def check_like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Same dtype and device as another argument."""
    wanted = f"have the dtype of {other_name}, {dtype_name(other.dtype)}"
    require(tensor.dtype == other.dtype, op, name, wanted, dtype_name(tensor.dtype))
    require(tensor.device == other.device, op, name, f"be on the device of {other_name}, {other.device}", tensor.device)


def check_size(op: str, name: str, tensor: Tensor, axis: int, wanted: int, meaning: str) -> None:
    """One size that must equal another argument's."""
    size = tensor.size(axis)
    require(size == wanted, op, name, f"have size {wanted} in dimension {axis} ({meaning})", size)


def check_length(op: str, name: str, tensor: Tensor, letter: str, wanted: int) -> None:
    """One number per head or channel."""
    shape = tuple(tensor.shape)
    require(shape == (wanted,), op, name, f"be ({letter},) with {letter} = {wanted}", shape)


def check_vector(op: str, name: str, tensor: Tensor, letter: str, wanted: int, like: Tensor) -> None:
    """A parameter with one number per head or channel."""
    check_length(op, name, tensor, letter, wanted)
    check_parameter(op, name, tensor, like)


def check_parameter(op: str, name: str, tensor: Tensor, like: Tensor) -> None:
    """A parameter is in the dtype of the sums."""
    dtype = accumulate_dtype(like)
    require(tensor.dtype == dtype, op, name, f"be {dtype_name(dtype)}", dtype_name(tensor.dtype))
    require(tensor.device == like.device, op, name, f"be on {like.device} like the tokens", tensor.device)


def check_attention(op: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Q (B, N, H, D), k (B, M, H, D), v (B, M, H, V), all of one dtype and device."""
    check_tensor(op, "q", q, "(B, N, H, D)")
    check_tensor(op, "k", k, "(B, M, H, D)")
    check_tensor(op, "v", v, "(B, M, H, V)")
    for name, tensor in (("k", k), ("v", v)):
        check_like(op, name, tensor, "q", q)
        check_size(op, name, tensor, 0, q.size(0), "the batch of q")
        check_size(op, name, tensor, 2, q.size(2), "the heads of q")
    check_size(op, "k", k, 3, q.size(3), "the head dim of q")
    check_size(op, "v", v, 1, k.size(1), "the tokens of k")
    for name, tensor in (("q", q), ("v", v)):
        dim = tensor.size(3)
        require(1 <= dim <= MAX_HEAD_DIM, op, name, f"have a head dim of 1 to {MAX_HEAD_DIM}", dim)
