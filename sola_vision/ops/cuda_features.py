"""Features of newer devices that the CUDA kernels use where they pay, and a switch for each.

``SOLA_CUDA_WITHOUT`` is read when this is imported: names from ``CUDA_FEATURES``, separated by commas.
"""

from __future__ import annotations

import os
from functools import partial

from sola_vision.ops._extension import extension
from sola_vision.ops._restoring import Restoring
from sola_vision.suggest import did_you_mean

CUDA_FEATURES: tuple[str, ...] = tuple(extension.CUDA_FEATURES)
_WITHOUT = "SOLA_CUDA_WITHOUT"


def cuda_without(*names: str) -> Restoring:
    """Keep the CUDA kernels from these features, and from no others, from now on or within a ``with`` block.

    ``clusters``: linear attention with one state by one kernel, whose thread-block clusters share what they have summed
    up, where otherwise three run one after the other. ``wgmma``: softmax attention by asynchronous products of
    warpgroups instead of ``mma.sync``. ``pdl``: programmatic dependent launch, by which a kernel starts its blocks before
    the one in front has ended. These three are of compute capability 9.0 or later (``wgmma`` of 9.0 alone), and are
    not used elsewhere anyway. ``shared``: more than 99 KiB of shared memory for a block, which softmax attention uses for
    wide heads where the device has it (8.0, 8.7, 9.0, 10.0). Results differ by rounding: sums are added in another order.

    It is for measuring what a feature brings, and for going round one that fails. It holds for the whole process, all
    threads and graphs compiled before, until the next call; as a context, until its end; captured CUDA graphs keep
    what they captured. CPU tensors are not affected. Called within a compiled function it breaks the graph.

    Raises:
        ValueError: names what is known, and the nearest.

    """
    return _switch_off("cuda_without", names)


def cuda_features_off() -> tuple[str, ...]:
    """What is not used: nothing unless ``cuda_without`` or ``SOLA_CUDA_WITHOUT`` said otherwise."""
    return tuple(extension.cuda_features_off())


def _switch_off(where: str, names: tuple[str, ...]) -> Restoring:
    for name in names:
        if name not in CUDA_FEATURES:
            raise ValueError(f"{where}: no CUDA feature is named {name!r}{did_you_mean(name, CUDA_FEATURES)}")
    restoring = Restoring(partial(extension.switch_cuda_features_off, cuda_features_off()))
    extension.switch_cuda_features_off(names)
    return restoring


def _read_environment() -> None:
    names = os.environ.get(_WITHOUT, "").split(",")
    if wish := tuple(name.strip() for name in names if name.strip()):
        _switch_off(_WITHOUT, wish)


_read_environment()
