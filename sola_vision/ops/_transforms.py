"""Gradients under ``torch.func``: its transforms refuse the nodes that C++ records, and take those of Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def under_transforms(
    name: str, autocast: Callable[[torch.device], list[torch.dtype]], **fixed: Any
) -> Callable[..., Any]:
    """The operator ``sola::name``, for calls that ``torch.func`` may differentiate.

    Its backward's arguments are known by their names: inputs and results of the forward, and gradients of results.
    ``autocast``: what the leading arguments become under autocast, which has to come before a node that keeps them.
    ``fixed``: what a call gives for an argument where it may be differentiated.
    """
    operator = getattr(torch.ops.sola, name).default
    node = _node(name.removeprefix("chunked_"), operator, getattr(torch.ops.sola, f"{name}_backward").default, fixed)

    def call(*args: Any) -> Any:
        # a compiler's graph holds the operator itself: torch.vmap takes that, too, and derivatives are an error there
        if torch.compiler.is_dynamo_compiling() or not torch._C._are_functorch_transforms_active():
            return operator(*args)
        device = args[0].device
        if torch.is_autocast_enabled(device.type):
            dtypes = autocast(device)
            args = (*map(_cast, args, dtypes), *args[len(dtypes) :])
        return node.apply(*args)

    return call


def lowered(tensors: int) -> Callable[[torch.device], list[torch.dtype]]:
    """Autocast's lower precision for so many leading arguments."""
    return lambda device: [torch.get_autocast_dtype(device.type)] * tensors


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # autocast leaves float64 alone
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _node(title: str, forward: Any, backward: Any, fixed: dict[str, Any]) -> Any:
    inputs = [argument.name for argument in forward._schema.arguments]
    results = [result.name or "out" for result in forward._schema.returns]
    taken = [argument.name for argument in backward._schema.arguments]
    given = [result.name.removeprefix("grad_") for result in backward._schema.returns]

    class Node(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            results = forward(*args, **fixed)
            return results if isinstance(results, Tensor) else tuple(results)

        @staticmethod
        def setup_context(context: Any, args: tuple[Any, ...], outputs: Any) -> None:
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            kept = {**dict(zip(results, outputs, strict=False)), **dict(zip(inputs, args, strict=False))}
            values = [kept.get(name) for name in taken]
            context.save_for_backward(*(value if isinstance(value, Tensor) else None for value in values))
            context.others = [None if isinstance(value, Tensor) else value for value in values]

        @staticmethod
        def backward(context: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            wanted = dict(zip(inputs, context.needs_input_grad, strict=False))
            values = dict(zip(taken, map(_either, context.saved_tensors, context.others), strict=True))
            values[taken[0]] = list(grads) if taken[0] == "grads" else grads[0]
            if "decay_grad" in values:
                values["decay_grad"] = wanted["decay"]
            found = dict(zip(given, backward(*values.values()), strict=True))
            return tuple(found[name] if want else None for name, want in wanted.items())

        @staticmethod
        def jvp(context: Any, *tangents: Tensor) -> Any:
            raise NotImplementedError(
                f"{title}: forward-mode differentiation (torch.func.jvp, jacfwd, hessian) is not implemented; use reverse mode"
                " (torch.func.grad, vjp, jacrev), once"
            )

    return Node


def _either(tensor: Tensor | None, other: Any) -> Any:
    return other if tensor is None else tensor
