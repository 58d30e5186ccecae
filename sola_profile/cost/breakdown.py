"""The cost of one forward pass, piece by piece, whoever worked it out: a closed form or operator formulas. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CLOSED_FORM, FORMULAS = "closed form", "formulas"


@dataclass(frozen=True)
class PieceCost:
    """One piece at one size: matrix products in multiply-accumulates, scalar operations by kind, parameters."""

    name: str
    kind: str
    macs: int
    scalar_ops: Mapping[str, int]
    parameters: int


@dataclass(frozen=True)
class Breakdown:
    """A batch at one size, piece by piece, forward.

    ``origin``: ``closed form``, arithmetic on the spec of a backbone, where a piece is one of its parts and a kind that
    of its layer; or ``formulas`` of the operators that ran, where a piece is a module and a kind that of its products.
    ``kinds``: all kinds in the order in which they are shown.
    """

    pieces: tuple[PieceCost, ...]
    kinds: tuple[str, ...]
    origin: str

    @property
    def macs(self) -> int:
        """All matrix products; FLOPs are twice that."""
        return sum(piece.macs for piece in self.pieces)

    @property
    def parameters(self) -> int:
        """All learnable numbers."""
        return sum(piece.parameters for piece in self.pieces)

    @property
    def macs_by_kind(self) -> dict[str, int]:
        """Matrix products per kind."""
        return {kind: sum(piece.macs for piece in self.pieces if piece.kind == kind) for kind in self.kinds}

    @property
    def scalar_ops(self) -> dict[str, int]:
        """Scalar operations by name, most frequent first."""
        names = {name for piece in self.pieces for name in piece.scalar_ops}
        sums = {name: sum(piece.scalar_ops.get(name, 0) for piece in self.pieces) for name in names}
        return dict(sorted(sums.items(), key=lambda entry: (-entry[1], entry[0])))
