"""What the four feature maps of a backbone are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sola_vision.spec import BackboneSpec


@dataclass(frozen=True)
class Feature:
    """One feature map ``(B, channels, ⌈H/reduction⌉, ⌈W/reduction⌉)`` and the module it comes from."""

    module: str
    channels: int
    reduction: int


class FeatureInfo(Sequence[Feature]):
    """The feature maps of a backbone, finest first; ``channels()`` and ``reduction()`` read as in timm."""

    def __init__(self, spec: BackboneSpec) -> None:
        self._features = tuple(
            Feature(f"stages.{index}", dim, spec.patch_size * 2**index) for index, dim in enumerate(spec.dims)
        )

    def __getitem__(self, index: Any) -> Any:
        return self._features[index]

    def __len__(self) -> int:
        return len(self._features)

    def __iter__(self) -> Iterator[Feature]:
        return iter(self._features)

    def __repr__(self) -> str:
        return f"FeatureInfo({list(self._features)})"

    def channels(self, index: int | None = None) -> list[int] | int:
        """Channels of all maps, or of one."""
        every = [feature.channels for feature in self._features]
        return every if index is None else every[index]

    def reduction(self, index: int | None = None) -> list[int] | int:
        """Pixels of the image per token side, of all maps or of one."""
        every = [feature.reduction for feature in self._features]
        return every if index is None else every[index]
