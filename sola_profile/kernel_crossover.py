"""Measures where linear attention overtakes softmax attention: both ours, in turn, at sizes that close in on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sola_profile.compare.crossover import crossing, next_tokens
from sola_profile.compare.ratios import Ratio, ratio
from sola_profile.cost.kernels import equal_products_tokens
from sola_profile.kernel_case import Choice, KernelCase, Shape
from sola_profile.kernel_measuring import CPU
from sola_profile.kernel_result import Crossover
from sola_profile.kernel_workload import make_inputs, make_step
from sola_profile.measure.contest import prepare, race, raise_failure
from sola_profile.measure.latency import timer_for
from sola_profile.peers.table import ROUTES
from sola_profile.workload import cpu_threads

HEAD_DIMS = (32, 64, 128)
# heads × head dim, so that the three differ in nothing else
WIDTH = 384
LINEAR, SOFTMAX = "linear_attention", "softmax_attention"
# sizes that a search tries, about; each gets its share of the time
SIZES_TRIED = 8
WARMUP_SHARE = 0.2


@dataclass(frozen=True)
class Search:
    """One crossover to look for."""

    dim: int
    dtype: str
    mode: str
    threads: int

    @property
    def heads(self) -> int:
        """Of both operators."""
        return WIDTH // self.dim

    def case(self, op: str, tokens: int) -> KernelCase:
        """One of the two at some N."""
        return KernelCase(op, Shape((1, self.heads, tokens, self.dim)), self.dtype, self.mode, self.threads)

    def __str__(self) -> str:
        return f"D {self.dim} {self.dtype} {self.mode}"


def searches(choice: Choice) -> Iterator[Search]:
    """Every head dim in every dtype and mode, with the most threads of the choice."""
    for mode in choice.modes:
        for dtype in choice.dtypes:
            yield from (Search(dim, dtype, mode, max(choice.threads)) for dim in HEAD_DIMS)


def find_crossover(search: Search, rounds: int, allowance_s: float) -> Crossover:
    """Close in on the N from which linear attention is faster."""
    points: dict[int, Ratio] = {}
    with cpu_threads(search.threads):
        while (tokens := next_tokens(points)) is not None:
            found = _softmax_over_linear(search, tokens, rounds, allowance_s / SIZES_TRIED)
            if found is None:
                break
            points[tokens] = found
    where = crossing(points)
    return Crossover(
        dim=search.dim,
        heads=search.heads,
        dtype=search.dtype,
        mode=search.mode,
        threads=search.threads,
        analytical_tokens=equal_products_tokens(search.dim, search.mode),
        tokens=where[0] if where else None,
        interval=where[1] if where else None,
        points=tuple(points.items()),
    )


def _softmax_over_linear(search: Search, tokens: int, rounds: int, allowance_s: float) -> Ratio | None:
    timer = timer_for(CPU)
    contestants = {}
    for op in (LINEAR, SOFTMAX):
        case = search.case(op, tokens)
        step = make_step(case, ROUTES[op][0].function, make_inputs(case))
        contestants[op] = prepare(step, timer, WARMUP_SHARE * allowance_s)
    race(contestants, timer, rounds, allowance_s, raise_failure)
    linear, softmax = (contestants[op].latency() for op in (LINEAR, SOFTMAX))
    return None if linear is None or softmax is None else ratio(linear, softmax)
