"""Which parameters are matrices of maps, and whether a map is more than its matrix."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as all_modules
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.module_tracker import ModuleTracker

# it may be replaced later, in the class or on a module
_FORWARD = nn.Linear.forward


def matrix_parameters(model: nn.Module) -> set[int]:
    """``id`` of the parameters that are matrices of linear maps and convolutions, or that these are computed from.

    A parametrised or pruned map has parameters of other names, and computes its weight anew from them.
    """
    found: list[nn.Parameter] = []
    for part in model.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            found += part.parameters(recurse=False)
            if is_parametrized(part, "weight"):
                found += part.get_submodule("parametrizations.weight").parameters()
    return {id(parameter) for parameter in found if parameter.dim() > 1}


def is_its_matrix(part: nn.Module) -> bool:
    """Whether a map without bias is its matrix and nothing else, so that the product may be taken without calling it.

    It is not where an adapter or a quantised map is in its place, its matrix is of another kind of tensor, a hook wants
    to be called, or a library has put a ``forward`` of its own on the module or the class.
    """
    if type(part) is not nn.Linear or part.bias is not None or not _is_plain(part.weight):
        return False
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return _has_its_forward(part) and not any(hooks) and not _is_watched()


def _has_its_forward(part: nn.Module) -> bool:
    # a look into vars(part) instead would leave compiled code without a guard
    return isinstance(part.forward, MethodType) and part.forward.__func__ is _FORWARD


def _is_plain(weight: Tensor) -> bool:
    """Whether a tensor is none of a library's own; PyTorch follows models with fake ones in place of plain ones."""
    return type(weight) in (Tensor, nn.Parameter) or isinstance(weight, FakeTensor)


def _is_watched() -> bool:
    """Whether a hook wants to be called by all modules."""
    before, after = all_modules._global_forward_pre_hooks, all_modules._global_forward_hooks
    if all_modules._global_backward_hooks or all_modules._global_backward_pre_hooks:
        return True
    return not all(map(_is_tracker, [*before.values(), *after.values()]))


def _is_tracker(hook: Callable[..., Any]) -> bool:
    """Whether a hook only names the modules, for PyTorch's counters, which would count another model otherwise."""
    return isinstance(getattr(hook, "__self__", None), ModuleTracker)
