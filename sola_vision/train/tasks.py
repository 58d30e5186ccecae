"""Three generated tasks whose difficulty is known: long-range matching, counting over the image, local texture.

A sample is a pure function of ``(split, seed, index)`` (``randomness.py``), where a split is ``"train"`` or ``"eval"``: no
two share a random number, so evaluation never sees a training image, and any image can be made again.
"""

# B batch, S side in pixels, P patch side in pixels

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sola_vision.suggest import did_you_mean
from sola_vision.train.randomness import generator

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

CHANNELS = 3


class Task(Protocol):
    """A generated task: images ``(B, 3, S, S)`` around zero, and their labels below ``classes``."""

    @property
    def classes(self) -> int:
        """How many labels there are; all are equally frequent, so chance is ``1 / classes``."""

    def samples(self, split: str, seed: int, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The samples of these indices, each made on its own from ``(split, seed, index)``."""


@dataclass(frozen=True)
class _Draws:
    """Random numbers of a batch: ``uniform`` ``(B, n)`` in [0, 1) and standard normal ``noise`` ``(B, 3, S, S)``."""

    uniform: NDArray[np.float64]
    noise: Images

    def integers(self, column: int, below: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Whole numbers in [0, below) from one column."""
        return (self.uniform[:, column] * below).astype(np.int64)


def _draw(split: str, seed: int, indices: Sequence[int], numbers: int, size: int) -> _Draws:
    uniform = np.empty((len(indices), numbers))
    noise = np.empty((len(indices), CHANNELS, size, size), np.float32)
    for row, index in enumerate(indices):
        numbers_of_sample = generator(split, seed, int(index))
        numbers_of_sample.random(out=uniform[row])
        numbers_of_sample.standard_normal(dtype=np.float32, out=noise[row])
    return _Draws(uniform, noise)


def _places(keys: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """``count`` different cells per sample in random order, ``(B, count)``, from one key per cell ``(B, cells)``."""
    return np.argsort(keys, axis=1, kind="stable")[:, :count]


def _paste(images: Images, rows: NDArray[np.int64], columns: NDArray[np.int64], patches: Images) -> None:
    """Add ``(B, 3, P, P)`` patches at a top-left pixel per sample."""
    inner = np.arange(patches.shape[-1])
    batch, channel = np.arange(len(images))[:, None, None, None], np.arange(CHANNELS)[None, :, None, None]
    row = (rows[:, None] + inner)[:, None, :, None]
    column = (columns[:, None] + inner)[:, None, None, :]
    images[batch, channel, row, column] += patches


def _check(name: str, value: Any, least: float, most: float, kind: type = int) -> None:
    allowed = (int,) if kind is int else (int, float)
    if not isinstance(value, allowed) or isinstance(value, bool) or not least <= value <= most:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}: expected {what} from {least} to {most}, got {value!r}")


def _patch_side(size: int, patch: int | None) -> int:
    """The patch side that was given, or an eighth of the image; checks both."""
    _check("size", size, 16, 4096)
    side = size // 8 if patch is None else patch
    _check("patch", side, 2, size // 3)
    return side


# opposite colours in pairs, none of them grey
_COLOURS = np.array(
    [[1, -1, -1], [-1, 1, 1], [-1, 1, -1], [1, -1, 1], [-1, -1, 1], [1, 1, -1]],
    np.float32,
)


@dataclass(frozen=True)
class Match:
    """Are the two marked patches, ``d`` pixels apart in a row or a column, of the same colour? Two classes.

    A patch is a square of ``patch`` pixels with one of ``kinds`` colours; a marked one has a white ring around its
    colour. ``distractors`` are patches without a ring, of colours that tell nothing. Every image has noise of a deviation
    of its own, ``noise·u²`` with u uniform in [0, 1), so that many are clear and some are hard. Chance is 50 %, also for
    a model that sees one of the marked patches only, or nothing beyond ``d`` pixels: colours and places are drawn apart
    from the label. Ceiling: finding both rings and reading both colours, which matched filters do in more than 99.5 %
    of the images at the default noise and 97 % at the proxies' (``tests/test_train_tasks.py``).
    """

    size: int = 32
    d: int | None = None
    kinds: int = 2
    distractors: int = 4
    noise: float = 1.0
    patch: int | None = None

    def __post_init__(self) -> None:
        side = _patch_side(self.size, self.patch)
        object.__setattr__(self, "patch", side)
        if self.d is None:
            # most of the image, and whole patches
            object.__setattr__(self, "d", (self.size - side) * 5 // (7 * side) * side)
        _check("d", self.d, side, self.size - side)
        _check("kinds", self.kinds, 2, len(_COLOURS))
        _check("distractors", self.distractors, 0, (self.size // side) ** 2 // 2)
        _check("noise", self.noise, 0, 10, float)

    @property
    def classes(self) -> int:
        """Different or the same."""
        return 2

    def samples(self, split: str, seed: int, indices: Sequence[int]) -> tuple[Images, Labels]:
        """``Task.samples``: label 1 for the same colour."""
        side, apart = self.patch, self.d
        assert side is not None
        assert apart is not None
        cells = self.size // side
        draws = _draw(split, seed, indices, 7 + self.distractors + cells**2, self.size)
        images = draws.noise * (self.noise * draws.uniform[:, 6] ** 2).astype(np.float32)[:, None, None, None]
        labels = draws.integers(0, 2)
        first = draws.integers(1, self.kinds)
        # another colour where they differ: one to kinds - 1 steps on
        other = (first + 1 + draws.integers(2, self.kinds - 1)) % self.kinds
        second = np.where(labels == 1, first, other)
        along = draws.integers(3, (self.size - side - apart) // side + 1) * side
        across = draws.integers(4, cells) * side
        in_row = draws.uniform[:, 5] < 0.5
        ends = [(np.where(in_row, across, end), np.where(in_row, end, across)) for end in (along, along + apart)]
        self._distract(images, draws, ends)
        for kind, (rows, columns) in zip((first, second), ends, strict=True):
            _paste(images, rows, columns, self._patches(kind, marked=True))
        return images, labels

    def _distract(self, images: Images, draws: _Draws, ends: list[tuple[Any, Any]]) -> None:
        """Patches without a ring, on cells that no marked patch touches."""
        side = self.patch
        assert side is not None
        cells = self.size // side
        corners = np.arange(cells) * side
        keys = draws.uniform[:, 7 + self.distractors :].reshape(-1, cells, cells).copy()
        for rows, columns in ends:
            touched_row = np.abs(corners - rows[:, None]) < side
            touched_column = np.abs(corners - columns[:, None]) < side
            # keys below one come first in the order of cells
            keys[touched_row[:, :, None] & touched_column[:, None, :]] += 1
        for number, place in enumerate(_places(keys.reshape(len(images), -1), self.distractors).T):
            patches = self._patches(draws.integers(7 + number, self.kinds), marked=False)
            _paste(images, place // cells * side, place % cells * side, patches)

    def _patches(self, kinds: NDArray[np.int64], *, marked: bool) -> Images:
        """A ring of a quarter of the side around the colour, white where marked and empty where not."""
        side = self.patch
        assert side is not None
        ring = max(side // 4, 1)
        patches = np.full((len(kinds), CHANNELS, side, side), 1.5 if marked else 0.0, np.float32)
        patches[:, :, ring : side - ring, ring : side - ring] = 1.5 * _COLOURS[kinds][:, :, None, None]
        return patches


@dataclass(frozen=True)
class Count:
    """How many of the ``objects`` are of the first kind? ``classes`` answers: 0, 1, … ``classes`` - 1.

    All images hold the same number of objects, squares of ``patch`` pixels split into four: the first kind is bright
    on the main diagonal and dark beside it, the second the other way round. Mean, contrast and number of
    objects are the same whatever the answer, so chance, ``1 / classes``, is all that is left to a model which can't tell
    the kinds apart or sees one part of the image only. Ceiling: a matched filter reads every object right in more
    than 99 % of the images, at the default noise and at the proxies'.
    """

    size: int = 32
    classes: int = 5
    objects: int = 8
    noise: float = 0.5
    patch: int | None = None

    def __post_init__(self) -> None:
        side = _patch_side(self.size, self.patch)
        object.__setattr__(self, "patch", side)
        _check("objects", self.objects, 1, (self.size // side) ** 2)
        _check("classes", self.classes, 2, self.objects + 1)
        _check("noise", self.noise, 0, 10, float)

    def samples(self, split: str, seed: int, indices: Sequence[int]) -> tuple[Images, Labels]:
        """``Task.samples``: the label is the count."""
        side = self.patch
        assert side is not None
        cells = self.size // side
        draws = _draw(split, seed, indices, 1 + cells**2, self.size)
        images = draws.noise * np.float32(self.noise)
        labels = draws.integers(0, self.classes)
        half = side // 2
        shape = np.zeros((side, side), np.float32)
        shape[:half, :half] = shape[half : 2 * half, half : 2 * half] = 1
        shape[:half, half : 2 * half] = shape[half : 2 * half, :half] = -1
        # the cells come in random order, so the first ones may hold the first kind
        for number, place in enumerate(_places(draws.uniform[:, 1:], self.objects).T):
            sign = np.where(number < labels, 1, -1).astype(np.float32)
            patches = np.broadcast_to(sign[:, None, None, None] * shape, (len(images), CHANNELS, side, side))
            _paste(images, place // cells * side, place % cells * side, patches)
        return images, labels


# (rows, columns) per period: level, upright and the two diagonals
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
PERIOD = 4


@dataclass(frozen=True)
class Texture:
    """Which way do the stripes run? Four classes: across, down and the two diagonals, with a period of four pixels.

    Every cell of ``patch`` pixels shows stripes with probability ``density``, each cell at a phase of its own, so that
    nothing is won by looking beyond a cell; a 4 × 4 neighbourhood holds all there is. Stripes are cosines of height one
    under noise of deviation ``noise`` in each channel. Chance is 25 %. Ceiling: the accuracy of the ideal observer,
    ``argmax_k Π_cells (1 - density + density · mean_phase exp((x·g - g·g/2) / noise²))``, which knows all this; it
    is more than 99 % at the default noise and at the proxies' (``tests/test_train_tasks.py`` computes it).
    """

    size: int = 32
    density: float = 0.15
    noise: float = 1.2
    patch: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", _patch_side(self.size, self.patch))
        _check("density", self.density, 0, 1, float)
        _check("noise", self.noise, 0, 10, float)

    @property
    def classes(self) -> int:
        """One per direction."""
        return len(_DIRECTIONS)

    def samples(self, split: str, seed: int, indices: Sequence[int]) -> tuple[Images, Labels]:
        """``Task.samples``: the label is the direction."""
        side = self.patch
        assert side is not None
        cells = self.size // side
        draws = _draw(split, seed, indices, 1 + 2 * cells**2, self.size)
        images = draws.noise * np.float32(self.noise)
        labels = draws.integers(0, self.classes)
        shown, phases = draws.uniform[:, 1:].reshape(len(images), 2, cells, cells).swapaxes(0, 1)
        gratings = stripes(side)[labels]
        phase = (phases * PERIOD).astype(np.int64)
        batch = np.arange(len(images))[:, None, None]
        tiles = gratings[batch, phase] * (shown < self.density)[..., None, None].astype(np.float32)
        sides = cells * side
        drawn = tiles.transpose(0, 1, 3, 2, 4).reshape(len(images), 1, sides, sides)
        images[:, :, :sides, :sides] += drawn
        return images, labels


def stripes(side: int) -> Images:
    """``cos(2π (a·row + b·column + phase) / 4)``, ``(directions, phases, side, side)``."""
    row, column = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    waves = [
        [np.cos(2 * np.pi * (a * row + b * column + phase) / PERIOD) for phase in range(PERIOD)] for a, b in _DIRECTIONS
    ]
    return np.array(waves, np.float32)


TASKS: dict[str, Callable[..., Task]] = {"match": Match, "count": Count, "texture": Texture}


def read_task(text: str, size: int) -> Task:
    """Read ``match``, ``match:d=40`` or ``texture:noise=0.5,density=0.2`` at this image side.

    Raises ``ValueError`` that names the task or the option, with the nearest known one.
    """
    name, _, rest = text.partition(":")
    if name not in TASKS:
        raise ValueError(f"data: no task is named {name!r}{did_you_mean(name, TASKS)}")
    known = {key: value for key, value in inspect.signature(TASKS[name]).parameters.items() if key != "size"}
    options: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in known:
            raise ValueError(f"data: the task {name} has no option {key!r}{did_you_mean(key, known)}")
        options[key] = _number(key, value)
    return TASKS[name](size=size, **options)


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{key}: expected a number such as {key}=4, got {text!r}") from None
    return int(value) if value.is_integer() and "." not in text else value
