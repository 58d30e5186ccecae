"""Which kernel computes softmax attention on CUDA: asked for by name, or taken from an ordered list of routes.

``SOLA_SOFTMAX_BACKEND`` and ``SOLA_SOFTMAX_ROUTES`` are read when this is imported. The list itself, and what each
backend takes, are in ``csrc/softmax_routes.cpp``.
"""

from __future__ import annotations

import os
from functools import partial

from sola_vision.ops._extension import extension
from sola_vision.ops._restoring import Restoring
from sola_vision.ops._routes_file import read_routes
from sola_vision.suggest import did_you_mean

SOFTMAX_BACKENDS: tuple[str, ...] = tuple(extension.SOFTMAX_BACKENDS)
_BACKEND, _ROUTES = "SOLA_SOFTMAX_BACKEND", "SOLA_SOFTMAX_ROUTES"


def softmax_backend(name: str) -> Restoring:
    """Choose what computes the forward pass of ``softmax_attention`` on CUDA, from now on or within a ``with`` block.

    ``auto`` takes the first route of an ordered list that matches the call and whose backend takes it; ``own`` is the
    kernels of this package; ``flash``, ``cudnn`` and ``efficient`` are those of PyTorch's
    ``scaled_dot_product_attention``. A backend asked for by name runs or raises ``ValueError`` with the reason.

    It holds for the whole process, all threads and graphs compiled before, until the next call; as a context, until
    its end. CPU tensors have one kernel, and are not affected. The backward pass is always ours: it needs nothing but
    output and logsumexp, and gives the same bits in every run, which those of PyTorch by default do not. Called within
    a compiled function it breaks the graph; call it around.

    Raises:
        ValueError: names what is known, and the nearest.

    """
    _check("softmax_backend", name)
    restoring = Restoring(partial(extension.pin_softmax_backend, current_softmax_backend()))
    extension.pin_softmax_backend(name)
    return restoring


def current_softmax_backend() -> str:
    """What is asked for: ``auto`` unless ``softmax_backend`` or ``SOLA_SOFTMAX_BACKEND`` said otherwise."""
    name: str = extension.softmax_backend()
    return name


def _check(where: str, name: str) -> None:
    if name not in SOFTMAX_BACKENDS:
        raise ValueError(f"{where}: no backend is named {name!r}{did_you_mean(name, SOFTMAX_BACKENDS)}")


def _read_environment() -> None:
    if wish := os.environ.get(_BACKEND):
        _check(_BACKEND, wish)
        extension.pin_softmax_backend(wish)
    if path := os.environ.get(_ROUTES):
        extension.set_softmax_routes(read_routes(path, f"{_ROUTES}={path}"))


_read_environment()
