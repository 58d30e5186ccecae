"""What one piece of a backbone costs, as closed-form terms; torch-free.

Every layer module states its own terms beside its ``forward``. They are plain arithmetic in the number of tokens, so
the same formula gives an integer for an integer and a polynomial for a sympy symbol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Terms:
    """Cost of one image (batch 1), forward.

    ``macs``: multiply-accumulates of the matrix-product family (matmul, convolution, attention products), by name of
    the product; 1 MAC = 2 FLOPs. ``scalar_ops``: everything else that is counted (normalisation, activations, exp,
    decay), by kind, one operation each. ``params``: learnable numbers.
    """

    macs: Mapping[str, Any] = field(default_factory=dict)
    scalar_ops: Mapping[str, Any] = field(default_factory=dict)
    params: int = 0

    def __add__(self, other: Terms) -> Terms:
        return Terms(
            _added(self.macs, other.macs), _added(self.scalar_ops, other.scalar_ops), self.params + other.params
        )

    @property
    def total_macs(self) -> Any:
        """All matrix products."""
        return sum(self.macs.values())

    @property
    def total_scalar_ops(self) -> Any:
        """All scalar operations."""
        return sum(self.scalar_ops.values())


def total(*terms: Terms) -> Terms:
    """The sum of several terms."""
    return sum(terms, Terms())


def linear(name: str, tokens: Any, inputs: int, outputs: int, *, bias: bool = False) -> Terms:
    """A linear map of every token, its product filed under ``name``: ``tokens·inputs·outputs`` MACs."""
    adds = {"elementwise": tokens * outputs} if bias else {}
    return Terms({name: tokens * inputs * outputs}, adds, inputs * outputs + (outputs if bias else 0))


def layer_norm(tokens: Any, dim: int) -> Terms:
    """LayerNorm with scale and shift: 7 operations per element.

    One to sum, three for the squared distances (subtract, square, sum), one to normalise, two for scale and shift;
    what happens once per token (division, root) is left out.
    """
    return Terms({}, {"norm": 7 * tokens * dim}, 2 * dim)


def sigmoid_gate(elements: Any) -> Terms:
    """``sigmoid(r) · x``: an exp, an addition and a division, then the product."""
    return Terms({}, {"exp": elements, "activation": 2 * elements, "elementwise": elements})


def elementwise(elements: Any, operations: int = 1) -> Terms:
    """Additions and products of tensors, a number of operations per element."""
    return Terms({}, {"elementwise": operations * elements})


def _added(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    return {key: left.get(key, 0) + right.get(key, 0) for key in {**left, **right}}
