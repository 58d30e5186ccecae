"""What a notebook hands over, read the same way by every function: sizes, names, settings, seconds."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, TypeGuard

from sola_profile.case import Resolution, Settings, in_order, parse_resolutions, whole_number
from sola_profile.machine import check_device

# one size, or what holds several
Size = str | int | Resolution
Sizes = Size | Iterable[Size]


def read_sizes(name: str, sizes: Sizes) -> tuple[Resolution, ...]:
    """Every size once, from few pixels to many: of ``224``, ``"224,512x2048"``, a ``Resolution``, or a list of these.

    Raises ``ValueError`` that names the argument ``name``, also where there is none.
    """
    entries: tuple[Any, ...] = (sizes,)
    if not isinstance(sizes, (str, Resolution)):
        try:
            entries = tuple(sizes)  # type: ignore[arg-type]
        except TypeError:
            # a number
            entries = (sizes,)
    if not entries:
        raise ValueError(f"{name}: expected at least one size, got {sizes!r}")
    try:
        return in_order(size for entry in entries for size in _sizes_of(entry))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def read_size(name: str, size: Sizes) -> Resolution:
    """The only one of ``read_sizes``; raises ``ValueError`` that names the argument where there are several."""
    first, *others = read_sizes(name, size)
    if others:
        raise ValueError(f"{name}: expected one size, got {', '.join(map(str, (first, *others)))}")
    return first


def _sizes_of(entry: Any) -> tuple[Resolution, ...]:
    if isinstance(entry, Resolution):
        return (entry,)
    if isinstance(entry, str):
        return parse_resolutions(entry)
    try:
        if isinstance(entry, bool):
            raise TypeError
        side = operator.index(entry)
    except TypeError:
        raise ValueError(f"expected pixels such as 224 or '512x2048', or a list of these, got {entry!r}") from None
    return (Resolution(side, side),)


def read_texts(name: str, texts: str | Iterable[str], example: str) -> tuple[str, ...]:
    """The entries of a list, of which text is one; raises ``ValueError`` that names the argument ``name``."""
    listed = (texts,) if isinstance(texts, str) or not isinstance(texts, Iterable) else tuple(texts)
    for text in listed:
        if not isinstance(text, str):
            raise ValueError(f"{name}: expected a list such as [{example!r}], got {text!r}")
    return listed


def read_stages(stages: int | Iterable[int]) -> tuple[int, ...]:
    """Every stage once, in order: of ``3`` or ``[3, 4]``; raises ``ValueError`` that names the argument."""
    listed = tuple(stages) if isinstance(stages, Iterable) and not isinstance(stages, str) else (stages,)
    numbers = {whole_number("stages", stage) for stage in listed}
    if not numbers <= {1, 2, 3, 4}:
        raise ValueError(f"stages: expected numbers from 1 to 4, got {stages!r}")
    return tuple(sorted(numbers))


def read_settings(settings: Settings | None) -> Settings:
    """The usual ones for None; raises ``ValueError`` for anything else, and for a device that isn't there."""
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise ValueError(f"settings: expected Settings such as Settings(batch=2), got {settings!r}")
    try:
        check_device(settings.device)
    except ValueError as error:
        raise ValueError(f"device: {error}") from error
    return settings


def check_seconds(name: str, seconds: float) -> None:
    """Raise ``ValueError`` unless this is a finite number of more than 0 seconds."""
    if not _is_number(seconds) or not 0 < seconds < math.inf:
        raise ValueError(f"{name}: expected more than 0 seconds, got {seconds!r}")


def check_budget(budget_s: float | None, *, nothing: float | None = None) -> None:
    """Raise ``ValueError`` unless this is a finite number of more than 0 seconds, or ``nothing``, which measures nothing."""
    if budget_s is None and nothing is None:
        return
    if not _is_number(budget_s) or not (0 < budget_s < math.inf or budget_s == nothing):
        raise ValueError(f"budget_s: expected more than 0 seconds, or {nothing} to measure nothing, got {budget_s!r}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
