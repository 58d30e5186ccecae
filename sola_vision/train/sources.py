"""Where batches come from: a generated task or a folder of images."""

# B batch, S side in pixels

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from sola_vision.train.config import TASK, TrainConfig
from sola_vision.train.tasks import Task, read_task
from sola_vision.train.world import World

EVAL_BATCH = 256

Batch = tuple[Tensor, Tensor]


class Source(Protocol):
    """Images ``(B, 3, S, S)`` in float32 and labels ``(B)``, this process's part of them.

    A training batch is a function of the config and its step alone, so that a run can begin at any step.
    """

    classes: int
    # of the training images and their order: a run can't go on with others
    fingerprint: str

    def steps(self) -> int:
        """How many steps the config asks for."""

    def train_batches(self, first: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps from ``first`` to before ``stop``."""

    def eval_batches(self) -> Iterator[Batch]:
        """The evaluation images; each goes to one process."""


class TaskSource:
    """A generated task: every step has new images."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        self.task: Task = read_task(str(config.data).removeprefix(TASK), config.size)
        self.classes = self.task.classes
        # all that the images depend on is in the config
        self.fingerprint = ""

    def steps(self) -> int:
        """``Source.steps``."""
        assert self.config.steps is not None
        return self.config.steps

    def train_batches(self, first: int, stop: int) -> Iterator[Batch]:
        """``Source.train_batches``: step s has the images from ``s·batch`` on."""
        for step in range(first, stop):
            yield self._batch("train", self.world.share(step * self.config.batch, self.config.batch))

    def eval_batches(self) -> Iterator[Batch]:
        """``Source.eval_batches``."""
        indices = range(self.world.rank, self.config.eval_size, self.world.size)
        for start in range(0, len(indices), EVAL_BATCH):
            yield self._batch("eval", indices[start : start + EVAL_BATCH])

    def _batch(self, split: str, indices: range) -> Batch:
        images, labels = self.task.samples(split, self.config.seed, indices)
        return torch.from_numpy(images), torch.from_numpy(labels)


def open_source(config: TrainConfig, world: World) -> Source:
    """The source that ``config.data`` names; raises ``ValueError`` where there is none."""
    if config.is_task:
        return TaskSource(config, world)
    from sola_vision.train.folder import FolderSource

    return FolderSource(config, world)
