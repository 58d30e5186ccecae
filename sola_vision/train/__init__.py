"""A small, complete trainer for experiments on patterns.

``train(TrainConfig(model="sola_t", data="FOLDER", epochs=300))`` trains in the calling process;
``python -m sola_vision.train`` is the same as a command, ``docs/training.md`` its manual.
"""

from typing import TYPE_CHECKING

from sola_vision.train.config import Optimiser, Output, Regularisation, TrainConfig, TrainResult
from sola_vision.train.proxy import proxy_config, proxy_spec

if TYPE_CHECKING:
    from sola_vision.train.loop import train

__all__ = ["Optimiser", "Output", "Regularisation", "TrainConfig", "TrainResult", "proxy_config", "proxy_spec", "train"]


def __getattr__(name: str) -> object:
    # torch loads with the first run, so that configs and help need none
    if name == "train":
        from sola_vision.train.loop import train

        return train
    raise AttributeError(f"module 'sola_vision.train' has no attribute {name!r}")
