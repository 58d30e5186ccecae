"""What bounds each kind of layer as images grow, and from which size on it is arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sola_profile.case import Resolution
from sola_profile.cost.recording import Call
from sola_profile.cost.roofline import BOUNDS, COMPUTE, ModelTime


@dataclass(frozen=True)
class Turn:
    """``bounds``: size → what bounds most of the kind's time there. ``compute_from``: the smallest size from which on that
    is arithmetic at every larger one looked at, None where it isn't at the largest.
    """

    kind: str
    bounds: Mapping[Resolution, str]
    compute_from: Resolution | None


def turns(times: Mapping[Resolution, ModelTime], key: Callable[[Call], str]) -> list[Turn]:
    """The turn of every kind, ``key`` naming the kind of a call, over sizes from few pixels to many."""
    bounds: dict[str, dict[Resolution, str]] = {}
    for resolution, time in times.items():
        for kind, calls in time.grouped(key).items():
            shares = {bound: sum(call.time.middle for call in calls if call.bound == bound) for bound in BOUNDS}
            bounds.setdefault(kind, {})[resolution] = max(shares, key=lambda bound: shares[bound])
    return [Turn(kind, found, _compute_from(found)) for kind, found in bounds.items()]


def _compute_from(bounds: Mapping[Resolution, str]) -> Resolution | None:
    first = None
    for resolution in reversed(list(bounds)):
        if bounds[resolution] != COMPUTE:
            break
        first = resolution
    return first
