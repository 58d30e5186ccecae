"""How far measured times were from predicted ones, and the interval around a prediction that follows from it.

Ratios r of measured over predicted times are those that ``sola-profile predict --accuracy`` found. The interval around a
predicted time t is [t / f, t · f] with

    f = exp(q),  q the ⌈(n + 1) · SHARE⌉-th smallest of the n values |ln r|

which holds the time of one more model with probability SHARE if its ratio is like the others (split conformal
prediction; Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005). Ratios of the model itself, and
of its twins with other layers, are left out. Rows of one model are alike, so that the number of models counts more than n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp, log

SHARE = 0.8


@dataclass(frozen=True)
class Deviations:
    """Of one run on one machine. ``ratios``: measured over predicted time by model, a value for each measured size."""

    machine: str
    measured_at: str
    dtype: str
    threads: int
    ratios: Mapping[str, Sequence[float]]


def factor(known: Iterable[Deviations], model: str) -> float | None:
    """What to divide and to multiply a model's predicted time by; None where too little is known of other models."""
    logarithms = sorted(
        abs(log(ratio))
        for each in known
        for name, ratios in each.ratios.items()
        if _family(name) != _family(model)
        for ratio in ratios
    )
    rank = ceil((len(logarithms) + 1) * SHARE)
    return exp(logarithms[rank - 1]) if rank <= len(logarithms) else None


def _family(model: str) -> str:
    """``sola_t`` for ``sola_t[all L]``, which is much the same model."""
    return model.partition("[")[0]
