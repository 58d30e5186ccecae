"""The machine's ceilings, measured: matrix products, exponentials and copies, by number of threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from sola_profile.workload import cpu_threads
from sola_vision.ops._extension import extension

# sides of the square products that torch.matmul is tried with
SIDES = (512, 1024, 2048)
# a copy this large, and four times the last cache, comes from memory
LEAST_COPY_BYTES = 2**28
LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@dataclass(frozen=True)
class Gemm:
    """Rates of matrix products in FLOP/s, 2 per multiply-accumulate.

    ``matmul``: of large square ``torch.matmul``. ``tiles``: of the compiled operators' tiles on data in the caches of
    each thread, added up over threads.
    """

    matmul: float
    tiles: float

    @property
    def ceiling(self) -> float:
        """The higher of the two."""
        return max(self.matmul, self.tiles)


@dataclass(frozen=True)
class Ceilings:
    """What so many threads reach at best.

    ``gemm``: by dtype. ``copy_bytes_per_s``: read and written bytes of a copy well beyond the caches, together.
    ``exp_per_s``: float32 exponentials of the compiled operators, on data in the caches.
    """

    threads: int
    gemm: Mapping[str, Gemm]
    copy_bytes_per_s: float
    exp_per_s: float


def measure_ceilings(threads: int, dtypes: Iterable[str], seconds: float) -> Ceilings:
    """Each rate is the best within about ``seconds``."""
    with cpu_threads(threads):
        gemm = {dtype: Gemm(_matmul(dtype, seconds), _tiles(dtype, threads, seconds)) for dtype in dtypes}
        copy, exponentials = _copy(seconds), _at_once(lambda: extension.exp_rate(seconds), threads)
    return Ceilings(threads, gemm, copy, exponentials)


def _matmul(dtype: str, seconds: float) -> float:
    def rate(side: int) -> float:
        a, b = (torch.rand(side, side).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * side**3 / _shortest(lambda: torch.mm(a, b, out=out), seconds / len(SIDES))

    return max(map(rate, SIDES))


def _tiles(dtype: str, threads: int, seconds: float) -> float:
    return _at_once(lambda: extension.gemm_rate(dtype, seconds), threads)


def _copy(seconds: float) -> float:
    size = max(LEAST_COPY_BYTES, 4 * _last_cache_bytes())
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    return 2 * size / _shortest(lambda: target.copy_(source), seconds)


def _at_once(rate: Callable[[], float], threads: int) -> float:
    """The sum of what every thread reaches while the others do the same."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(future.result() for future in [pool.submit(rate) for _ in range(threads)])


def _shortest(step: Callable[[], object], seconds: float) -> float:
    """The shortest of the runs within the time, and of three at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)


def _last_cache_bytes() -> int:
    """Size of the largest cache as Linux tells it, 0 where it doesn't."""
    try:
        text = LAST_CACHE.read_text(encoding="ascii").strip()
    except OSError:
        return 0
    return int(text.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(text[-1:], 1) if text.rstrip("KM").isdigit() else 0
