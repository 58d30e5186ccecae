"""What the feature maps of a backbone are, and which of them are asked for."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence, Set
from typing import Any

from sola_vision.spec import BackboneSpec


class Feature(dict[str, Any]):
    """One feature map ``(B, channels, ⌈H/reduction⌉, ⌈W/reduction⌉)`` and the module it comes from.

    The items are those of timm: ``module``, ``num_chs``, ``reduction``.
    """

    @property
    def module(self) -> str:
        return str(self["module"])

    @property
    def channels(self) -> int:
        return int(self["num_chs"])

    @property
    def reduction(self) -> int:
        return int(self["reduction"])


class FeatureInfo(tuple[Feature, ...]):
    """The feature maps that a backbone has, finest first; ``channels()`` and ``reduction()`` read as in timm.

    ``out_indices``: which of them the model returns, by default all.
    """

    out_indices: tuple[int, ...]

    def __new__(cls, features: Iterable[Feature], out_indices: Sequence[int] | None = None) -> FeatureInfo:
        info = super().__new__(cls, features)
        info.out_indices = tuple(range(len(info)) if out_indices is None else out_indices)
        return info

    @classmethod
    def of(cls, spec: BackboneSpec) -> FeatureInfo:
        """The four feature maps of a backbone."""
        return cls(
            Feature(module=f"stages.{index}", num_chs=dim, reduction=spec.patch_size * 2**index)
            for index, dim in enumerate(spec.dims)
        )

    def channels(self, index: int | None = None) -> list[int] | int:
        """Channels of all maps that are returned, or of one that the model has."""
        return [self[each].channels for each in self.out_indices] if index is None else self[index].channels

    def reduction(self, index: int | None = None) -> list[int] | int:
        """Pixels of the image per token side, of all maps that are returned, or of one that the model has."""
        return [self[each].reduction for each in self.out_indices] if index is None else self[index].reduction


def stage_indices(name: str, indices: int | Iterable[int] | None, stages: int) -> tuple[int, ...]:
    """Stages counted from 0, in order and each once: None for all, n for the last n, or a list of some.

    Negative numbers count from the end, as in timm. Whole numbers and arrays of them do as ints and lists do. Raises
    ``ValueError`` that names the argument ``name``.
    """
    if indices is None:
        return tuple(range(stages))
    allowed = f"{name}: expected the last 1 to {stages} stages or a list of stages from {-stages} to {stages - 1}"
    try:
        # once, since what is no list may be gone after one look
        listed = tuple(indices)  # type: ignore[arg-type]
    except TypeError:
        count = _whole(indices)
        if count is None or not 1 <= count <= stages:
            raise ValueError(f"{allowed}, got {indices!r}") from None
        return tuple(range(stages - count, stages))
    found = [number for number in map(_whole, listed) if number is not None and -stages <= number < stages]
    if not found or len(found) < len(listed):
        shown = indices if isinstance(indices, (Sequence, Set)) else list(listed)
        raise ValueError(f"{allowed}, got {shown!r}")
    return tuple(sorted({number % stages for number in found}))


def _whole(value: Any) -> int | None:
    """A whole number as an int; None for anything else, True and False among it."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
