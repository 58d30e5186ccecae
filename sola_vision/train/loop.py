"""The training loop."""

# B batch, S side in pixels

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sola_vision.factory import create_model
from sola_vision.train.config import TASK, TrainConfig, TrainResult
from sola_vision.train.optim import average, build_optimiser, draw_by_fan_in, learning_rate, set_rate
from sola_vision.train.tasks import Task, read_task

EVAL_BATCH = 256

Progress = Callable[[int, int, float], None]


def train(config: TrainConfig, *, progress: Progress | None = None) -> TrainResult:
    """Train a model and evaluate it.

    The same config gives the same bits on one CPU at the same number of threads. The random state of the caller is left
    as it was. ``progress`` is called with step, steps and loss after every step.

    Raises:
        ValueError: names the field, what came and what is allowed.

    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        trainer = Trainer(config)
        return trainer.run(progress)


class Trainer:
    """The state of a run: model, optimiser, averaged weights and the step it is at."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.task: Task = read_task(config.data.removeprefix(TASK), config.size)
        assert config.steps is not None
        self.steps = config.steps
        drop_path = config.regularisation.drop_path
        self.model: nn.Module = create_model(config.spec, num_classes=self.task.classes, drop_path=drop_path)
        if config.init == "fan_in":
            draw_by_fan_in(self.model)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False) if config.optimiser.ema else None
        self.optimiser = build_optimiser(self.model, config.optimiser)
        self.step = 0
        self.losses: list[float] = []
        self.seconds = 0.0

    def run(self, progress: Progress | None = None) -> TrainResult:
        """Train from the present step to the last and evaluate."""
        self.model.train()
        while self.step < self.steps:
            start = time.perf_counter()
            loss = self.train_step()
            self.seconds += time.perf_counter() - start
            if progress is not None:
                progress(self.step, self.steps, loss)
        correct, total, loss = self.evaluate(self.model)
        last = self.losses[-max(self.steps // 10, 1) :]
        result = TrainResult(correct, total, loss, sum(last) / len(last), self.step, self.seconds)
        if self.averaged is None:
            return result
        correct, _, loss = self.evaluate(self.averaged)
        return replace(result, ema_correct=correct, ema_loss=loss)

    def train_step(self) -> float:
        """One step of the optimiser; returns the batch's loss."""
        settings = self.config.optimiser
        images, labels = self.train_batch()
        set_rate(self.optimiser, learning_rate(settings, self.step, self.steps))
        loss = F.cross_entropy(self.scores(self.model, images), labels)
        self.optimiser.zero_grad()
        loss.backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimiser.step()
        if self.averaged is not None:
            average(self.averaged.parameters(), self.model.parameters(), settings.ema)
        self.step += 1
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {self.step}: lower lr or clip")
        self.losses.append(value)
        return value

    def scores(self, model: nn.Module, images: Tensor) -> Tensor:
        """The model's scores in float32."""
        with torch.autocast(self.config.device, torch.bfloat16, enabled=self.config.amp):
            scores: Tensor = model(images)
        return scores.float()

    def train_batch(self) -> tuple[Tensor, Tensor]:
        """The batch of the present step; every step has images of its own."""
        first = self.step * self.config.batch
        return self._tensors("train", range(first, first + self.config.batch))

    def _tensors(self, split: str, indices: range) -> tuple[Tensor, Tensor]:
        images, labels = self.task.samples(split, self.config.seed, indices)
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _eval_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, self.config.eval_size, EVAL_BATCH):
            yield self._tensors("eval", range(first, min(first + EVAL_BATCH, self.config.eval_size)))

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> tuple[int, int, float]:
        """Correct, total and mean cross-entropy over the evaluation images."""
        model.eval()
        correct, total, loss = 0, 0, 0.0
        for images, labels in self._eval_batches():
            scores = self.scores(model, images)
            correct += int((scores.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(scores, labels, reduction="sum"))
            total += len(labels)
        model.train()
        return correct, total, loss / total
