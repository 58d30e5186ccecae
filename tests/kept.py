"""A tensor of a library's own, as weights become when they are quantised or sharded."""

import torch
from torch.utils._pytree import tree_map_only


class Kept(torch.Tensor):
    """A matrix that another tensor keeps, as quantised and sharded ones are."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Kept(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        if operator.namespace == "sola":
            raise NotImplementedError(operator)
        out = operator(*tree_map_only(Kept, lambda kept: kept.inner, args), **(kwargs or {}))
        return cls(out) if operator is torch.ops.aten.detach.default else out
