"""Small runs that several files of tests start from."""

from dataclasses import replace

import torch

from sola_vision.train import Optimiser, Regularisation, TrainConfig, proxy_spec
from sola_vision.train.world import World

ALONE = World(0, 1, torch.device("cpu"))
SPEC = replace(proxy_spec("LS"), dims=(16, 16, 16, 16))
EVERYTHING = Regularisation(mixup=0.5, cutmix=0.5, label_smoothing=0.1, drop_path=0.2)
TINY = TrainConfig(
    SPEC, "task:count:patch=4", size=16, steps=24, batch=4, eval_size=30, optimiser=Optimiser(ema=0.9, warmup=3), seed=2
)


def numbers(result):
    return {key: value for key, value in result.record().items() if key != "train_seconds"}
