"""Sample images for a study: generated ones, the same picture at every size, those of a folder, or of a training task."""

# H height, W width

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sola_profile.case import Resolution
from sola_profile.workload import SEED
from sola_vision.imagenet import DEVIATION, MEAN
from sola_vision.train.config import TASK
from sola_vision.train.tasks import CHANNELS, read_task

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Samples:
    """Where images come from: ``folder``, a training ``task``, or generated without both; the first ``count`` of them.

    ``task``: such as ``match:d=16``, whose images are those of its evaluation at seed 0, as the trainer makes them for the size.
    """

    count: int
    folder: Path | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: expected at least 1 image, got {self.count}")
        if self.folder is not None and not self.files():
            raise ValueError(f"images: no image in {self.folder}; expected files with {', '.join(SUFFIXES)}")

    @classmethod
    def of(cls, count: int, text: str | Path | None) -> Samples:
        """Read a folder's name, or ``task:match:d=16`` as the trainer's ``--data`` takes it."""
        if isinstance(text, str) and text.startswith(TASK):
            return cls(count, task=text.removeprefix(TASK))
        return cls(count, None if text is None else Path(text))

    def check(self, channels: int, sizes: Iterable[Resolution]) -> None:
        """Raise ``ValueError`` for an image that can't be read or made, before the work begins."""
        for size in [Resolution(1, 1)] if self.task is None else sizes:
            for number in range(len(self.names)):
                self.load(number, channels, size)

    def files(self) -> list[Path]:
        """The images of the folder; raises ``ValueError`` when it can't be read."""
        assert self.folder is not None
        try:
            found = sorted(path for path in self.folder.iterdir() if _is_image(path))
        except OSError as error:
            raise ValueError(f"images: can't read the folder {self.folder}: {error.strerror}") from error
        return found[: self.count]

    @property
    def names(self) -> tuple[str, ...]:
        """One for each image."""
        if self.folder is not None:
            return tuple(path.name for path in self.files())
        if self.task is not None:
            return tuple(f"{self.task.partition(':')[0]} {number + 1}" for number in range(self.count))
        kinds = list(GENERATED)
        return tuple(f"{kinds[number % len(kinds)]} {number + 1}" for number in range(self.count))

    def load(self, number: int, channels: int, resolution: Resolution) -> Tensor:
        """Image ``number`` from 0 as ``(1, channels, H, W)`` in float32.

        Normalised as ImageNet's where it has three channels; of a task as it is trained on.
        """
        if self.task is not None:
            return _of_task(self.task, number, channels, resolution)
        if self.folder is None:
            pixels = _generated(number, channels, resolution)
        else:
            if channels != 3:
                raise ValueError(f"images: files have 3 channels, the model takes {channels}")
            pixels = _read(self.files()[number], resolution)
        mean, deviation = (MEAN, DEVIATION) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
        scaled = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
        return scaled[None]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _generated(number: int, channels: int, resolution: Resolution) -> Tensor:
    """Values from 0 to 1, ``(channels, H, W)``: a function of the place in the image, sampled at its pixels' centres."""
    generator = torch.Generator().manual_seed(SEED + number)
    y = (torch.arange(resolution.height) + 0.5)[:, None] / resolution.height
    x = (torch.arange(resolution.width) + 0.5)[None] / resolution.width
    kinds = list(GENERATED.values())
    return kinds[number % len(kinds)](y, x, channels, generator).clamp(0, 1)


def _blobs(y: Tensor, x: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Sixteen soft spots of random place, size and colour on grey."""
    picture = torch.full((channels, y.size(0), x.size(1)), 0.5)
    for _ in range(16):
        row, column, size, *colour = torch.rand(3 + channels, generator=generator).tolist()
        spot = torch.exp(-((y - row).square() + (x - column).square()) / (2 * (0.03 + 0.15 * size) ** 2))
        picture += (torch.tensor(colour)[:, None, None] - 0.5) * spot
    return picture


def _texture(y: Tensor, x: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Sixty-four waves whose amplitude falls as their frequency grows, as in natural images."""
    picture = torch.full((channels, y.size(0), x.size(1)), 0.5)
    for number in range(64):
        frequency = 1.06**number
        angle, *phases = (2 * torch.pi * torch.rand(1 + channels, generator=generator)).tolist()
        direction = torch.tensor(angle)
        along = 2 * torch.pi * frequency * (y * direction.sin() + x * direction.cos())
        picture += 0.35 / frequency**0.7 * torch.sin(along + torch.tensor(phases)[:, None, None])
    return picture


def _objects(y: Tensor, x: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Ten discs and rectangles with sharp edges, one over the other, on a slope of brightness."""
    picture = (0.3 + 0.4 * y + 0.0 * x).expand(channels, -1, -1).clone()
    for number in range(10):
        row, column, high, wide, *colour = torch.rand(4 + channels, generator=generator).tolist()
        down, across = (y - row).abs() / (0.04 + 0.14 * high), (x - column).abs() / (0.04 + 0.14 * wide)
        inside = down.square() + across.square() < 1 if number % 2 else torch.maximum(down, across) < 1
        picture = torch.where(inside, torch.tensor(colour)[:, None, None], picture)
    return picture


# kind → what paints it
GENERATED: dict[str, Callable[[Tensor, Tensor, int, torch.Generator], Tensor]] = {
    "objects": _objects,
    "texture": _texture,
    "blobs": _blobs,
}


def _of_task(text: str, number: int, channels: int, resolution: Resolution) -> Tensor:
    """An image of a task's evaluation, ``(1, 3, S, S)``."""
    if channels != CHANNELS:
        raise ValueError(f"images: those of a task have {CHANNELS} channels, the model takes {channels}")
    if resolution.height != resolution.width:
        raise ValueError(f"images: those of a task are square, got {resolution}")
    try:
        images, _ = read_task(text, resolution.height).samples("eval", SEED, [number])
    except ValueError as error:
        raise ValueError(f"images: task:{text} at {resolution}: {error}") from error
    return torch.from_numpy(images)


def _read(path: Path, resolution: Resolution) -> Tensor:
    """A file's middle in the shape of the image, values from 0 to 1."""
    from PIL import Image, ImageOps

    size = (resolution.width, resolution.height)
    try:
        with Image.open(path) as file:
            picture = ImageOps.fit(file.convert("RGB"), size, Image.Resampling.BICUBIC)
    except MemoryError:
        raise
    except Exception as error:
        # decoders of damaged files raise errors of many kinds
        raise ValueError(f"images: can't read {path.name}: {error}") from error
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(resolution.height, resolution.width, 3).permute(2, 0, 1).float() / 255
