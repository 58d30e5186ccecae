"""Folders of images, one folder per class."""

# B batch, S side in pixels

from __future__ import annotations

import hashlib
import importlib
import math
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sola_vision.imagenet import CROP, DEVIATION, MEAN
from sola_vision.train.config import Regularisation, TrainConfig
from sola_vision.train.randomness import derived_seed, generator
from sola_vision.train.sources import EVAL_BATCH, Batch
from sola_vision.train.world import World

SUFFIXES = tuple(Image.registered_extensions())
_ATTEMPTS = 10

# epoch and number of an image; of an evaluation image the epoch is None
Place = tuple[int | None, int]


def list_images(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """The classes, in the order of their names, and all images with their class.

    What is hidden, by a dot before its name, is none of them. Raises ``ValueError`` when the folder is missing, has no
    classes, or a class has no image.
    """
    if not folder.is_dir():
        raise ValueError(f"data: there is no folder {folder}; expected one with a folder per class")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))
    if not classes:
        raise ValueError(f"data: {folder} holds no folder per class")
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        images = sorted(path for path in _files(folder / name) if path.suffix.lower() in SUFFIXES)
        if not images:
            raise ValueError(f"data: {folder / name} holds no image; known endings: {', '.join(sorted(SUFFIXES))}")
        found += [(path, label) for path in images]
    return classes, found


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _hidden(name)]
        yield from (Path(place, name) for name in names if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".")


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """The images of a folder, changed at random while training: the same for the same seed, epoch and number."""

    def __init__(self, images: Sequence[tuple[Path, int]], config: TrainConfig) -> None:
        self.images, self.size, self.seed = images, config.size, config.seed
        self.settings = config.regularisation

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        epoch, number = place
        path, label = self.images[number]
        image = read_image(path)
        if epoch is None:
            return to_tensor(centre_crop(image, self.size)), label
        numbers = generator("crop", self.seed, number, epoch)
        image = random_crop(image, self.size, numbers)
        if numbers.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        with seeded(derived_seed("crop", self.seed, number, epoch + 2**32)):
            return augmented(image, self.settings), label


def read_image(path: Path) -> Image.Image:
    """The image in RGB; raises ``ValueError`` that names a file which can't be read.

    16 bits per pixel are brought to 8, where Pillow makes everything above 255 white; wider numbers have no known range.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(f"its mode is {image.mode}, 32 bits per pixel; expected 8 or 16")
            # Pillow warns where it drops the transparency of a palette by itself
            in_steps = image.mode == "P" and "transparency" in image.info
            whole: Image.Image = image.convert("RGBA") if in_steps else image
            return whole.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        # decoders of damaged files raise errors of many kinds
        raise ValueError(f"data: can't read the image {path}: {error}") from error


def random_crop(image: Image.Image, size: int, numbers: np.random.Generator) -> Image.Image:
    """A random part, of 8 to 100 % of the area and 3/4 to 4/3 as wide as high, resized to a square.

    Where ten tries don't fit, the largest centre crop within those proportions. Source: Szegedy et al., arXiv 1409.4842.
    """
    width, height = image.size
    for _ in range(_ATTEMPTS):
        area = width * height * numbers.uniform(0.08, 1)
        proportion = math.exp(numbers.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * proportion)), round(math.sqrt(area / proportion))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(numbers.integers(width - w + 1)), int(numbers.integers(height - h + 1))
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle square, 7/8 of the shorter side, resized."""
    side = min(image.size) * CROP
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def to_tensor(image: Image.Image) -> Tensor:
    """``(3, S, S)`` in float32, by channel less the mean and over the deviation of ImageNet."""
    pixels = (np.asarray(image, np.float32) / 255 - MEAN) / DEVIATION
    return torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1).copy())


def augmented(image: Image.Image, settings: Regularisation) -> Tensor:
    """RandAugment on the image and erasing on the tensor, where they are on; both are timm's."""
    if settings.rand_augment:
        image = _rand_augment(settings.rand_augment)(image)
    tensor = to_tensor(image)
    if settings.erasing:
        tensor = _erasing(settings.erasing)(tensor)
    return tensor


@lru_cache
def _rand_augment(text: str) -> Callable[[Any], Any]:
    from timm.data.auto_augment import rand_augment_transform

    grey = tuple(round(255 * mean) for mean in MEAN)
    transform: Callable[[Any], Any] = rand_augment_transform(text, {"translate_const": 100, "img_mean": grey})
    return transform


@lru_cache
def _erasing(share: float) -> Callable[[Tensor], Tensor]:
    from timm.data import random_erasing

    # untyped
    build: Any = random_erasing.RandomErasing
    erase: Callable[[Tensor], Tensor] = build(share, mode="pixel", device="cpu")
    return erase


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators that libraries draw from, started at ``seed`` and put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  what timm draws from
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class FolderSource:
    """``data/train`` and ``data/val``, each with one folder per class."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        if config.regularisation.rand_augment or config.regularisation.erasing:
            _need_timm()
        folder = Path(config.data)
        names, self.train_images = list_images(folder / "train")
        val_names, images = list_images(folder / "val")
        if val_names != names:
            odd = sorted(set(names) ^ set(val_names))
            raise ValueError(f"data: train and val of {folder} differ in their classes: {', '.join(odd[:5])}")
        self.eval_images = self._chosen(images)
        self.classes = len(names)
        listed = "\n".join(f"{path.relative_to(folder)} {label}" for path, label in self.train_images)
        self.fingerprint = hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()

    def _chosen(self, images: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
        """All, or ``eval_size`` of them spread over all classes by the seed."""
        count = self.config.eval_size or len(images)
        order = generator("eval", self.config.seed, 0).permutation(len(images))[:count]
        return [images[number] for number in sorted(order)]

    def steps(self) -> int:
        """``Source.steps``: the last step of so many epochs may reach into the next."""
        if self.config.steps is not None:
            return self.config.steps
        assert self.config.epochs is not None
        return max(math.ceil(self.config.epochs * len(self.train_images) / self.config.batch), 1)

    def train_batches(self, first: int, stop: int) -> Iterator[Batch]:
        """``Source.train_batches``: epoch after epoch, each in an order of its own, without a gap between them."""
        places = [self.world.share(step * self.config.batch, self.config.batch) for step in range(first, stop)]
        yield from self._load(self.train_images, _Places(places, len(self.train_images), self.config.seed))

    def eval_batches(self) -> Iterator[Batch]:
        """``Source.eval_batches``."""
        numbers = range(self.world.rank, len(self.eval_images), self.world.size)
        starts = range(0, len(numbers), EVAL_BATCH)
        places = [[(None, number) for number in numbers[start : start + EVAL_BATCH]] for start in starts]
        yield from self._load(self.eval_images, places)

    def _load(self, images: list[tuple[Path, int]], batches: Any) -> Iterator[Batch]:
        dataset = ImageFolder(images, self.config)
        loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.config.workers,
            pin_memory=self.world.device.type == "cuda",
            worker_init_fn=leave_interrupts_to_the_run,
            # workers draw nothing from it, but the loader would take its seed from the global generator
            generator=torch.Generator().manual_seed(0),
        )
        try:
            yield from loader
        except ValueError as error:
            # a worker's error comes with its traceback as text
            raise ValueError(str(error).rpartition("ValueError: ")[2].strip()) from error


def leave_interrupts_to_the_run(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the run ends its workers when it has finished its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Places:
    """Positions in the endless sequence of epochs → epoch and image, batch by batch."""

    def __init__(self, batches: list[range], images: int, seed: int) -> None:
        self.batches, self.images, self.seed = batches, images, seed

    def __iter__(self) -> Iterator[list[Place]]:
        order = lru_cache(maxsize=2)(lambda epoch: generator("order", self.seed, epoch).permutation(self.images))
        for batch in self.batches:
            places = [divmod(position, self.images) for position in batch]
            yield [(epoch, int(order(epoch)[number])) for epoch, number in places]

    def __len__(self) -> int:
        return len(self.batches)


def _need_timm() -> None:
    try:
        importlib.import_module("timm.data")
    except ImportError:
        raise ValueError("rand_augment, erasing: these are timm's, which is not installed: pip install timm") from None
    except RuntimeError as error:
        # torchvision for another torch than the one there is
        raise ValueError(f"rand_augment, erasing: these are timm's, which doesn't load: {error}") from error
