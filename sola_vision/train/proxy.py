"""Experiments on patterns that fit a desktop: a small four-stage backbone, and settings for the generated tasks."""

from __future__ import annotations

from collections.abc import Mapping

from sola_vision.spec import BackboneSpec, MixerSpec
from sola_vision.suggest import did_you_mean
from sola_vision.train.config import Optimiser, TrainConfig

# a proxy's mixers for the letter L
PROXY_MIXERS = ("wkv", "linear", "decay")
PROXY_SIZE = 24

# task → (options, steps): how hard and how long. Match has two colours, and marks of a third of the side, since
# same-or-different is a product of two places, of which there is no sign before a model has both: with four colours, or with
# marks of a quarter, LLLLLL and SSSSSS were still at chance after 350 steps. At a noise of 3 every pattern solves it, at 9 some
# seeds never leave chance; who knows where to look is right in 98.5 % at 7. Counting and stripes are learnt in half the steps.
_SETTINGS: Mapping[str, tuple[str, int]] = {
    "match": ("patch=8,d=16,kinds=2,distractors=2,noise=7.0", 400),
    "count": ("patch=4,classes=7,objects=10,noise=1.2", 200),
    "texture": ("patch=4,density=0.25,noise=1.4", 200),
}
PROXY_TASKS = tuple(_SETTINGS)


def proxy_spec(pattern: str, mixer: str = "wkv") -> BackboneSpec:
    """A backbone of 0.1 million parameters whose third stage has this pattern, such as ``"LLSLLS"``.

    The first, second and fourth stage have one linear layer each, and no bridges, so that nothing but the pattern
    differs. ``mixer``: what L stands for. Patches are single pixels: at 24 pixels the third stage sees 6 × 6 tokens.
    """
    if mixer not in PROXY_MIXERS:
        raise ValueError(f"mixer: no proxy has a mixer {mixer!r}{did_you_mean(mixer, PROXY_MIXERS)}")
    return BackboneSpec(
        f"proxy_{mixer}",
        (16, 16, 32, 32),
        f"L|L|{pattern}|L",
        {"L": MixerSpec(mixer), "S": MixerSpec("softmax")},
        head_dim=16,
        mix_ratio=2.0,
        patch_size=1,
    )


def proxy_config(task: str, pattern: str, mixer: str = "wkv", seed: int = 0) -> TrainConfig:
    """The run of an experiment: one generated task (``match``, ``count`` or ``texture``), one pattern, one seed.

    About half a minute on one core, evaluation on 2048 new images included. Raises ``ValueError`` that names the
    nearest task or mixer.
    """
    if task not in _SETTINGS:
        raise ValueError(f"task: no proxy has a task {task!r}{did_you_mean(task, _SETTINGS)}")
    options, steps = _SETTINGS[task]
    return TrainConfig(
        model=proxy_spec(pattern, mixer),
        data=f"task:{task}:{options}",
        size=PROXY_SIZE,
        steps=steps,
        batch=32,
        eval_size=2048,
        # match left chance at neither three times this rate nor with weights of a backbone's own deviation, 0.02
        optimiser=Optimiser(lr=2e-3, min_lr=1e-5, warmup=40, clip=1.0),
        init="fan_in",
        seed=seed,
    )
