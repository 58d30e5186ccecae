"""A run's state on disk, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from sola_vision.files import followed
from sola_vision.train.config import TrainConfig
from sola_vision.train.log import NAME as LOG
from sola_vision.train.log import has_steps

NAME = "checkpoint.pt"
WEIGHTS, AVERAGED_WEIGHTS, RESULT = "model.safetensors", "model_ema.safetensors", "result.json"
# what may change between the parts of a run without changing its result
_FREE = ("output", "workers", "device")


def write_checkpoint(folder: Path, config: TrainConfig, state: Mapping[str, Any]) -> None:
    """Write beside the old checkpoint and move over it, so that one of the two is whole whatever happens.

    Raises ``OSError`` that names the checkpoint where the disk is full.
    """
    # through a link to the file itself, which may lie on another disk
    path = followed(folder / NAME)
    # a run alone writes here, and takes up the name of one that was killed
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            torch.save({"config": _told(config), **state}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:
        # torch's archive hides the error of the disk behind one of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        # Ctrl-C ends it at any place
        part.unlink(missing_ok=True)


def written_by_a_run(folder: Path) -> list[str]:
    """Names of the files in a folder that a run has taken some steps for."""
    names = [name for name in (NAME, WEIGHTS, AVERAGED_WEIGHTS, RESULT) if (folder / name).exists()]
    return [*names, LOG] if has_steps(folder) else names


def starts_anew(folder: Path) -> bool:
    """Whether a run that is resumed there has nothing to go on from; raises ``ValueError`` where it has ended."""
    found = written_by_a_run(folder)
    if NAME in found:
        return False
    ended = [name for name in found if name != LOG]
    if ended:
        raise ValueError(
            f"resume: {folder} holds {', '.join(ended)} of a run that has ended, and no {NAME} to go on from; "
            "choose another folder"
        )
    return True


def read_checkpoint(folder: Path, config: TrainConfig, device: torch.device) -> dict[str, Any] | None:
    """The state, or None where none was written yet.

    Raises ``ValueError`` that names the fields in which the run there was told something else, the file when it is no
    checkpoint, or the results of a run whose checkpoint is gone.
    """
    path = folder / NAME
    if starts_anew(folder):
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        told = state.pop("config")
    except Exception as error:
        raise ValueError(f"resume: {path} is no checkpoint of a run: {error}") from error
    now = _told(config)
    other = [f"  {name}: {told.get(name)} there, {now[name]} here" for name in now if told.get(name) != now[name]]
    if other:
        raise ValueError("\n".join([f"resume: the run in {folder} was told something else:", *other]))
    return state


def _told(config: TrainConfig) -> dict[str, str]:
    return {field.name: repr(getattr(config, field.name)) for field in fields(config) if field.name not in _FREE}
