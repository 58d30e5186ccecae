"""What a setting of the whole process gives back: nothing, or a context that ends with what was set before."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class Restoring:
    """Does nothing by itself; as a context it calls ``restore`` at its end."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore = restore

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
