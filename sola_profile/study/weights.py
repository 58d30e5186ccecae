"""The weights that are studied: fresh, of a file, or a model's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sola_profile.workload import SEED
from sola_vision.backbone import Backbone
from sola_vision.factory import create_model, load_weights
from sola_vision.spec import BackboneSpec

HEAD, CLASSIFIER = "head.", "head.classifier.weight"
# how a file of torch.save begins
ZIP = b"PK\x03\x04"
SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Weights:
    """Where weights come from: all empty for fresh ones.

    ``name``: of the file, or of what gave the model. ``sha256``: of the file. ``step``: of the training run, where a checkpoint
    says so. ``given``: whether the model came with them.
    """

    name: str = ""
    sha256: str = ""
    step: int | None = None
    given: bool = False

    @property
    def fresh(self) -> bool:
        """Whether they are drawn here."""
        return not self.name

    def __str__(self) -> str:
        if self.fresh:
            return f"fresh weights, seed {SEED}"
        if self.given:
            return f"weights as in {self.name}"
        step = "" if self.step is None else f" behind step {self.step:,}"
        return f"weights of {self.name}{step} (sha256 {self.sha256[:SHOWN_DIGITS]})"


def fresh_model(spec: BackboneSpec, *, features_only: bool = False) -> Backbone:
    """A backbone with seeded fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return create_model(spec, features_only=features_only)


def with_weights(spec: BackboneSpec, path: Path) -> tuple[Backbone, Weights]:
    """A backbone with the weights of a file, and what to call them.

    The file is safetensors, as ``sola_vision.save_weights`` and a training run write them, or ``checkpoint.pt`` of a run, or a state
    dict that ``torch.save`` wrote. The head is the file's, with as many classes or none at all, whatever the spec says: no figure
    of a study depends on it. Raises ``ValueError`` when the file can't be read, or doesn't fit.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"weights: can't read {path}: {error.strerror or error}{_hint(path)}") from error
    source = Weights(path.name, hashlib.sha256(content).hexdigest())
    if not content.startswith(ZIP):
        model = _with_head(spec, _shapes(path))
        load_weights(model, path)
        return model, source
    state, step = _read_checkpoint(path)
    model = _with_head(spec, {name: tuple(value.shape) for name, value in state.items()})
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights: {path} doesn't fit {spec.name}: {error}") from error
    return model, replace(source, step=step)


def _with_head(spec: BackboneSpec, shapes: Mapping[str, tuple[int, ...]]) -> Backbone:
    """A backbone with the head that a state dict has."""
    classes = shapes.get(CLASSIFIER, (0,))[0]
    return fresh_model(
        replace(spec, num_classes=classes), features_only=not any(name.startswith(HEAD) for name in shapes)
    )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors in a safetensors file; raises ``ValueError`` when it is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"weights: {path} is no safetensors file and no checkpoint: {error}") from error


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """The state dict of a training run's checkpoint with its step, or of a file that holds nothing else."""
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"weights: {path} is no checkpoint: {error}") from error
    step = None
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found, step = found["model"], found.get("step")
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"weights: {path} holds no weights; expected a state dict, or one under the key 'model'")
    return dict(found), step


def _hint(path: Path) -> str:
    """What in a folder is meant, as far as that is known."""
    names = ("model.safetensors", "model_ema.safetensors", "checkpoint.pt")
    there = [name for name in names if (path / name).is_file()]
    return f"; it holds {', '.join(there)}" if there else ""
