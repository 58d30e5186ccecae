"""What a kernel reaches beside the measured ceilings of the machine."""

from __future__ import annotations

from dataclasses import dataclass

from sola_profile.cost.kernels import Work
from sola_profile.measure.ceilings import Ceilings


@dataclass(frozen=True)
class Shares:
    """Rates, and their share of what as many threads reach at best.

    ``gemm``: of the measured matrix products. ``copy``: of the measured copy bandwidth. ``floor``: the time that matrix
    products and exponentials take one after the other at their ceilings, over the measured time; for WKV, without
    products, that is the share of the ceiling that its exponentials set.
    """

    flops_per_s: float
    gemm: float
    bytes_per_s: float
    copy: float
    floor: float


def shares(work: Work, time_s: float, ceilings: Ceilings, dtype: str) -> Shares:
    """The shares of one run."""
    gemm = ceilings.gemm[dtype].ceiling
    flops_per_s, bytes_per_s = work.flops / time_s, work.moved_bytes / time_s
    floor_s = work.flops / gemm + work.exponentials / ceilings.exp_per_s
    return Shares(
        flops_per_s, flops_per_s / gemm, bytes_per_s, bytes_per_s / ceilings.copy_bytes_per_s, floor_s / time_s
    )
