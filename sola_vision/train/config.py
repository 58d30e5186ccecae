"""What a training run is: everything that its result depends on, checked when it is written down. Needs no torch."""

from __future__ import annotations

import math
import operator
import os
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from sola_vision.presets import get_spec
from sola_vision.spec import BackboneSpec, check_flag

TASK = "task:"
INITS = ("model", "fan_in")
# what a key of Philox holds beside the purpose
LARGEST_SEED = 2**48 - 1


@dataclass(frozen=True)
class Optimiser:
    """AdamW and the schedule of its learning rate.

    The rate rises linearly over ``warmup`` steps to ``lr`` and falls as half a cosine to ``min_lr``. Weight decay is
    for the matrices of linear maps and convolutions alone, not for norms, biases, decays, bonuses and mixing ratios.
    ``clip``: largest norm of the whole gradient, 0 for none. ``ema``: decay of the averaged weights, 0 for none.
    """

    lr: float = 1e-3
    min_lr: float = 1e-5
    warmup: int = 0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 5.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        _number(self, "lr", above=0)
        _number(self, "min_lr", 0, self.lr)
        _whole(self, "warmup", 0)
        _number(self, "weight_decay", 0)
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"betas: expected two numbers such as (0.9, 0.999), got {self.betas!r}")
        _set(self, "betas", tuple(_checked("betas", beta, 0, below=1) for beta in self.betas))
        _number(self, "clip", 0)
        _number(self, "ema", 0, below=1)


@dataclass(frozen=True)
class Regularisation:
    """What makes the training harder than the evaluation; all of it is off by default.

    ``mixup`` and ``cutmix``: the α of the Beta(α, α) that images and labels are mixed by; with both, each batch takes
    one of them. ``label_smoothing``: share of the target spread over all classes. ``drop_path``: stochastic-depth
    rate of the last layer, None for the model's own. ``rand_augment``: timm's RandAugment, such as
    "rand-m9-mstd0.5-inc1", and ``erasing``: probability of its random erasing; both for folders of images only.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    drop_path: float | None = None
    rand_augment: str = ""
    erasing: float = 0.0

    def __post_init__(self) -> None:
        _number(self, "mixup", 0)
        _number(self, "cutmix", 0)
        _number(self, "label_smoothing", 0, below=1)
        if self.drop_path is not None:
            _number(self, "drop_path", 0, below=1)
        if not isinstance(self.rand_augment, str):
            raise TypeError(f"rand_augment: expected a text such as 'rand-m9-mstd0.5-inc1', got {self.rand_augment!r}")
        _number(self, "erasing", 0, 1)


@dataclass(frozen=True)
class Output:
    """What a run leaves behind: ``log.csv``, ``checkpoint.pt``, ``model.safetensors`` and ``result.json``.

    ``folder``: where, None to write nothing. ``checkpoint_every`` and ``eval_every``: steps between checkpoints and
    evaluations, 0 for one at the end. ``log_every``: steps per line of the log. ``tensorboard``: event files too.
    """

    folder: Path | None = None
    checkpoint_every: int = 0
    eval_every: int = 0
    log_every: int = 50
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.folder is not None:
            _set(self, "folder", Path(_path("folder", self.folder)))
        _whole(self, "checkpoint_every", 0)
        _whole(self, "eval_every", 0)
        _whole(self, "log_every", 1)
        check_flag("tensorboard", self.tensorboard)
        if self.tensorboard and self.folder is None:
            raise ValueError("tensorboard: writes into the output folder; give one, got None")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    ``model``: a preset's name or a ``BackboneSpec``; its classes are those of the data. ``data``: a folder, as text or a
    ``Path``, with ``train`` and ``val``, each with one folder per class, or a generated task such as
    ``"task:match:d=40"``; text from then on.
    ``size``: image side in pixels. ``steps`` or ``epochs``: how long; a generated task never repeats an image and so has
    steps only. ``batch``: images per step over all processes. ``eval_size``: images of the evaluation (a folder: at
    most so many, 0 for all). ``amp``: bfloat16 autocast. ``seed`` sets weights, data and noise.
    ``init``: "model" for the backbone's own weights, "fan_in" for matrices of deviation 1/√fan_in, for narrow models.
    ``workers``: processes that read images, 0 for none.

    Raises ``ValueError`` or ``TypeError`` that names the field, what came and what is allowed.
    """

    model: str | BackboneSpec
    data: str | Path
    size: int = 224
    steps: int | None = None
    epochs: float | None = None
    batch: int = 64
    eval_size: int = 2048
    optimiser: Optimiser = field(default_factory=Optimiser)
    regularisation: Regularisation = field(default_factory=Regularisation)
    init: str = "model"
    amp: bool = False
    device: str = "cpu"
    seed: int = 0
    workers: int = 0
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        if not isinstance(self.model, (str, BackboneSpec)):
            raise TypeError(f"model: expected a name or a BackboneSpec, got {type(self.model).__name__}")
        text = _path("data", self.data)
        # a folder's name in one spelling
        _set(self, "data", text if text.startswith(TASK) else str(Path(text)))
        for name, kind in (("optimiser", Optimiser), ("regularisation", Regularisation), ("output", Output)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name}: expected {kind.__name__}(...), got {getattr(self, name)!r}")
        check_flag("amp", self.amp)
        if not isinstance(self.device, str):
            raise TypeError(f"device: expected cpu, cuda or cuda:N, got {self.device!r}")
        _whole(self, "size", 1)
        self._check_length()
        if self.init not in INITS:
            raise ValueError(f"init: expected one of {', '.join(INITS)}, got {self.init!r}")
        _whole(self, "batch", 1)
        _whole(self, "eval_size", 1 if self.is_task else 0)
        _whole(self, "seed", 0)
        if self.seed > LARGEST_SEED:
            raise ValueError(f"seed: expected a whole number from 0 to 2^48 - 1, got {self.seed}")
        _whole(self, "workers", 0)
        if self.is_task and (self.regularisation.rand_augment or self.regularisation.erasing):
            raise ValueError(f"rand_augment, erasing: for folders of images only, got data={self.data!r}")

    def _check_length(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps: give either steps or epochs, got steps={self.steps} and epochs={self.epochs}")
        if self.steps is not None:
            _whole(self, "steps", 1)
        if self.epochs is not None:
            _number(self, "epochs", above=0)
            if self.is_task:
                raise ValueError(
                    f"epochs: {self.data} makes new images for ever; give steps, got epochs={self.epochs:g}"
                )

    @property
    def is_task(self) -> bool:
        """Whether the data are generated."""
        return str(self.data).startswith(TASK)

    @property
    def spec(self) -> BackboneSpec:
        """The model's spec; raises ``ValueError`` that suggests the nearest name."""
        return get_spec(self.model) if isinstance(self.model, str) else self.model


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run.

    ``correct`` of ``total`` evaluation images, their mean cross-entropy ``loss`` in nats, and the same for the averaged
    weights where ``ema`` was on. ``train_loss``: mean over the last tenth of the steps. ``train_seconds``: the training
    alone, without building and evaluation.
    """

    correct: int
    total: int
    loss: float
    train_loss: float
    steps: int
    train_seconds: float
    ema_correct: int | None = None
    ema_loss: float | None = None

    @property
    def accuracy(self) -> float:
        """Share of the evaluation images that are classified right."""
        return self.correct / self.total

    @property
    def ema_accuracy(self) -> float | None:
        """The same for the averaged weights."""
        return None if self.ema_correct is None else self.ema_correct / self.total

    def record(self) -> dict[str, Any]:
        """All fields and both shares, for JSON."""
        return {**asdict(self), "accuracy": self.accuracy, "ema_accuracy": self.ema_accuracy}


def _number(part: Any, name: str, *limits: float, **bounds: float) -> None:
    """Check a field and keep it as ``float``, so that 1 and 1.0 are the same run."""
    _set(part, name, _checked(name, getattr(part, name), *limits, **bounds))


def _checked(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    rules = (
        (least, operator.ge, "at least"),
        (above, operator.gt, "more than"),
        (most, operator.le, "at most"),
        (below, operator.lt, "less than"),
    )
    given = [(bound, holds, text) for bound, holds, text in rules if bound is not None]
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not all(holds(number, bound) for bound, holds, _ in given):
        wanted = " and ".join(f"{text} {bound:g}" for bound, _, text in given)
        raise ValueError(f"{name}: expected a number of {wanted}, got {value!r}")
    return number


def _whole(part: Any, name: str, least: int) -> None:
    """Check a field and keep it as ``int``; NumPy's numbers are taken too."""
    value = getattr(part, name)
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    _set(part, name, number)


def _path(name: str, value: Any) -> str:
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected text or a Path, got {value!r}")
    return text


def _set(part: Any, name: str, value: Any) -> None:
    object.__setattr__(part, name, value)
