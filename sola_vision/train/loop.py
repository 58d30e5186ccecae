"""The training loop."""

# B batch, S side in pixels

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sola_vision.backbone import Backbone
from sola_vision.factory import create_model, save_weights
from sola_vision.train.checkpoint import (
    AVERAGED_WEIGHTS,
    NAME,
    RESULT,
    WEIGHTS,
    read_checkpoint,
    write_checkpoint,
    written_by_a_run,
)
from sola_vision.train.config import TrainConfig, TrainResult
from sola_vision.train.lock import only_writer
from sola_vision.train.log import NAME as LOG
from sola_vision.train.log import Log
from sola_vision.train.mixing import mix
from sola_vision.train.optim import average, build_optimiser, draw_by_fan_in, learning_rate, set_rate
from sola_vision.train.randomness import derived_seed, generator
from sola_vision.train.sources import open_source
from sola_vision.train.world import World, join

# called with step, steps and the batch's loss after every step
Progress = Callable[[int, int, float], None]


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a model and evaluate it.

    The same config gives the same bits on one CPU at the same number of threads, also when the run was cut off and
    resumed. The random state of the caller is left as it was. Under ``torchrun`` every process calls this and gets the
    same result. ``resume``: go on from the checkpoint in the output folder, or begin where a run left none and no result.
    ``stop``: asked after every step, in all processes or in none; when it is true in one of them, the state is written
    and all raise ``KeyboardInterrupt``.

    Raises:
        ValueError: names the field, what came and what is allowed; or the output folder, where another run writes to it.
        FloatingPointError: the loss is no number any more.

    """
    with ExitStack() as stack:
        world = stack.enter_context(join(config.device))
        stack.enter_context(torch.random.fork_rng())
        trainer = Trainer(config, world)
        if trainer.folder is not None:
            _make_writable(trainer.folder)
            stack.enter_context(only_writer(trainer.folder))
        trainer.open_folder(resume=resume)
        board, ended = config.output.tensorboard and trainer.leads, trainer.step == trainer.steps
        with Log(trainer.folder, trainer.step, ended=ended, tensorboard=board) as log:
            return trainer.run(log, progress, stop)


class Trainer:
    """The state of a run: model, optimiser, averaged weights and the step it is at.

    Random numbers are no part of it: those of a step are functions of seed, step and process.
    """

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        if config.batch % world.size:
            raise ValueError(f"batch: expected a multiple of the {world.size} processes, got {config.batch}")
        self.source = open_source(config, world)
        self.steps = self.source.steps()
        self.model = build_model(config, self.source.classes).to(world.device)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False) if config.optimiser.ema else None
        self.optimiser = build_optimiser(self.model, config.optimiser)
        self.wrapped = world.wrap(self.model)
        self.step = 0
        self.last_losses: deque[float] = deque(maxlen=max(self.steps // 10, 1))
        self.new_losses: list[float] = []
        self.seconds = 0.0

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.world.rank == 0

    @property
    def folder(self) -> Any:
        """Where this process writes, or None."""
        return self.config.output.folder if self.leads else None

    def open_folder(self, *, resume: bool) -> None:
        """Take up the run in the output folder where that is wanted; an old run is never overwritten."""
        folder = self.config.output.folder
        if folder is None:
            if resume:
                raise ValueError("resume: needs the output folder of the run, got None")
            return
        if resume:
            state = read_checkpoint(folder, self.config, self.world.device)
            if state is not None:
                self.load(state)
        elif found := written_by_a_run(folder):
            hint = "resume it, or choose" if NAME in found or found == [LOG] else "choose"
            raise ValueError(f"out: {folder} holds a run already ({', '.join(found)}); {hint} another folder")

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else None,
            "optimiser": self.optimiser.state_dict(),
            "images": self.source.fingerprint,
            "step": self.step,
            "last_losses": list(self.last_losses),
            "new_losses": self.new_losses,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there; raises ``ValueError`` where the images are others."""
        if state.get("images", self.source.fingerprint) != self.source.fingerprint:
            raise ValueError(
                f"resume: {self.config.data}/train holds other images than the run began with; their order, and with it "
                "the run, would be another"
            )
        self.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.last_losses.extend(state["last_losses"])
        self.new_losses = state["new_losses"]

    def save(self) -> None:
        """Write the checkpoint, in the process that writes."""
        if self.folder is not None:
            write_checkpoint(self.folder, self.config, self.state())

    def run(self, log: Log, progress: Progress | None, stop: Callable[[], bool] | None) -> TrainResult:
        """Train from the present step to the last and evaluate."""
        output = self.config.output
        self.model.train()
        start = time.perf_counter()
        for images, labels in self.source.train_batches(self.step, self.steps):
            loss = self.train_step(images, labels)
            self.seconds += time.perf_counter() - start
            if progress is not None:
                progress(self.step, self.steps, loss)
            if self.step % output.log_every == 0 or self.step == self.steps:
                self._log(log)
            if output.eval_every and self.step % output.eval_every == 0 and self.step < self.steps:
                self._evaluated(log)
            if output.checkpoint_every and self.step % output.checkpoint_every == 0:
                self.save()
            # one process that stopped alone would leave the others waiting for its gradients
            if stop is not None and any(self.world.total([float(stop())])):
                self.save()
                raise KeyboardInterrupt
            start = time.perf_counter()
        self.save()
        result = self._evaluated(log)
        if self.folder is not None:
            self._write_result(result)
        return result

    def train_step(self, images: Tensor, labels: Tensor) -> float:
        """One step of the optimiser on this process's part of the batch; returns the loss of the whole."""
        config, settings = self.config, self.config.optimiser
        where = (config.seed, self.step, self.world.rank)
        torch.manual_seed(derived_seed("weights", *where))
        images, labels = images.to(self.world.device), labels.to(self.world.device)
        images, targets = mix(images, labels, self.source.classes, config.regularisation, generator("mix", *where))
        set_rate(self.optimiser, learning_rate(settings, self.step, self.steps))
        scores = self.scores(self.wrapped, images)
        loss = F.cross_entropy(scores, targets, label_smoothing=config.regularisation.label_smoothing)
        self.optimiser.zero_grad()
        loss.backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimiser.step()
        if self.averaged is not None:
            average(self.averaged.parameters(), self.model.parameters(), settings.ema)
        self.step += 1
        value = self.world.total([loss.item()])[0] / self.world.size
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {self.step}: a lower lr or clip may help")
        self.last_losses.append(value)
        self.new_losses.append(value)
        return value

    def scores(self, model: nn.Module, images: Tensor) -> Tensor:
        """The model's scores in float32."""
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.amp):
            scores: Tensor = model(images)
        return scores.float()

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> tuple[int, int, float]:
        """Correct, total and mean cross-entropy over the evaluation images, each seen by one process."""
        model.eval()
        correct, total, loss = 0, 0, 0.0
        for images, on_host in self.source.eval_batches():
            labels = on_host.to(self.world.device)
            scores = self.scores(model, images.to(self.world.device))
            correct += int((scores.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(scores, labels, reduction="sum"))
            total += len(labels)
        model.train()
        sums = self.world.total([correct, total, loss])
        return int(sums[0]), int(sums[1]), sums[2] / sums[1]

    def _log(self, log: Log) -> None:
        rate = learning_rate(self.config.optimiser, self.step - 1, self.steps)
        mean = sum(self.new_losses) / len(self.new_losses)
        log.add(self.step, lr=rate, train_loss=mean, train_seconds=self.seconds)
        self.new_losses = []

    def _evaluated(self, log: Log) -> TrainResult:
        correct, total, loss = self.evaluate(self.model)
        mean = sum(self.last_losses) / len(self.last_losses)
        result = TrainResult(correct, total, loss, mean, self.step, self.seconds)
        if self.averaged is not None:
            correct, _, loss = self.evaluate(self.averaged)
            result = replace(result, ema_correct=correct, ema_loss=loss)
        log.add(
            self.step,
            eval_loss=result.loss,
            accuracy=result.accuracy,
            ema_accuracy=result.ema_accuracy,
            train_seconds=self.seconds,
        )
        return result

    def _write_result(self, result: TrainResult) -> None:
        folder = self.folder
        save_weights(cast(Backbone, self.model), folder / WEIGHTS)
        if self.averaged is not None:
            save_weights(cast(Backbone, self.averaged), folder / AVERAGED_WEIGHTS)
        text = json.dumps(result.record(), indent=2)
        (folder / RESULT).write_text(text + "\n", encoding="utf-8")


def build_model(config: TrainConfig, classes: int) -> nn.Module:
    """The model with the fresh weights of this seed, the same in every process."""
    torch.manual_seed(config.seed)
    model = create_model(config.spec, num_classes=classes, drop_path=config.regularisation.drop_path)
    if config.init == "fan_in":
        draw_by_fan_in(model)
    return model


def _make_writable(folder: Path) -> None:
    """Make the output folder; raise ``ValueError`` where nothing can be written to it, before a step is run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"out: can't write to {folder}: {error.strerror}") from error
