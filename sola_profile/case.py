"""What is run: a model, an image size and the settings of the run. Torch-free."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sola_vision.presets import get_spec
from sola_vision.spec import BackboneSpec, check_flag

if TYPE_CHECKING:
    from sola_profile.source import InputShape, ModelSource

MODES = ("infer", "train")
# sgd has a momentum of 0.9
OPTIMIZERS = ("none", "sgd", "adamw")
DTYPES = ("float32", "bfloat16", "float16", "float64")

# 65,536 pixels a side are 2^28 tokens at patch 4, past which products of two token counts leave 64 bits
MAX_SIDE = 65_536

# memory is predicted for mps too, though nothing is measured there
_DEVICE = re.compile(r"(cpu|cuda|mps)(:\d+)?")
_SIZE = re.compile(r"(\d+)(?:x(\d+))?")


@dataclass(frozen=True, order=True)
class Resolution:
    """An image size in pixels; ``224`` stands for 224 × 224, ``512x2048`` for 512 rows of 2048."""

    height: int
    width: int

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if not isinstance(side, int) or isinstance(side, bool):
                raise ValueError(f"{name}: expected a whole number, got {side!r}")
            if not 1 <= side <= MAX_SIDE:
                raise ValueError(f"a side has 1 to {MAX_SIDE:,} pixels, got {side:,}")

    @classmethod
    def parse(cls, text: str) -> Resolution:
        """Read ``224`` or ``512x2048``; raises ``ValueError`` with the nearest right spelling."""
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            numbers = re.findall(r"\d+", text)
            hint = f"; did you mean {'x'.join(numbers[:2])!r}?" if numbers else ""
            raise ValueError(f"expected pixels such as 224 or 512x2048, got {text.strip()!r}{hint}")
        height = int(match[1])
        return cls(height, height if match[2] is None else int(match[2]))

    @property
    def pixels(self) -> int:
        """Height × width."""
        return self.height * self.width

    def __str__(self) -> str:
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"


def parse_resolutions(text: str) -> tuple[Resolution, ...]:
    """Read ``224,512x2048,1024``: every size once, from few pixels to many."""
    parts = text.split(",")
    if not all(part.strip() for part in parts):
        raise ValueError(f"an empty size in {text!r}; expected sizes such as 224,512x2048")
    return in_order(map(Resolution.parse, parts))


def in_order(sizes: Iterable[Resolution]) -> tuple[Resolution, ...]:
    """Every size once, from few pixels to many."""
    return tuple(sorted(set(sizes), key=lambda size: (size.pixels, size)))


def check_choice(name: str, value: Any, known: Collection[str]) -> None:
    """Raise ``ValueError`` with the most similar one unless this is one of the known names."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}{nearest(str(value), known)}")


def nearest(wrong: str, known: Collection[str]) -> str:
    """``'; did you mean X?'`` with the most similar known name, or nothing when none is similar."""
    near = difflib.get_close_matches(wrong.lower(), known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


# more than any machine has; starting tens of thousands fails inside the OpenMP runtime, with an error of memory
MOST_THREADS = 4096


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A number as ``int``, NumPy's too; raises ``ValueError`` that names the argument for what is none.

    ``least``: for the message; a number below it is the caller's to refuse.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}") from None


@dataclass(frozen=True)
class Settings:
    """How every case of a sweep is run.

    ``mode``: ``infer`` is the forward pass without gradients, ``train`` is forward and backward, and a step of the
    ``optimizer`` if there is one. ``checkpointing``: what a block computes is dropped and computed again in the backward
    pass. ``threads``: of PyTorch's CPU operators, None leaves them as they are.
    """

    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    mode: str = "infer"
    compile: bool = False
    threads: int | None = None
    optimizer: str = "none"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch", whole_number("batch", self.batch))
        if self.threads is not None:
            object.__setattr__(self, "threads", whole_number("threads", self.threads))
        if self.batch < 1:
            raise ValueError(f"batch: expected at least 1 image, got {self.batch}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {self.threads}")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise ValueError(f"threads: expected at most {MOST_THREADS}, got {self.threads}")
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("mode", self.mode, MODES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_flag("compile", self.compile)
        check_flag("checkpointing", self.checkpointing)
        if not isinstance(self.device, str) or _DEVICE.fullmatch(self.device) is None:
            raise ValueError(f"device: expected cpu, cuda or cuda:N, got {self.device!r}")
        if self.mode != "train" and (self.optimizer != "none" or self.checkpointing):
            name = "checkpointing" if self.checkpointing else "optimizer"
            raise ValueError(f"{name}: belongs to mode train, got mode {self.mode!r}")

    @property
    def device_type(self) -> str:
        """``cuda`` for ``cuda:1``."""
        return self.device.split(":")[0]


@dataclass(frozen=True)
class Case:
    """One model at one image size under the settings of the sweep. ``sized``: it is built for this very size."""

    source: ModelSource
    resolution: Resolution
    settings: Settings
    shape: InputShape
    sized: bool = False

    @property
    def spec(self) -> BackboneSpec | None:
        """What the model is built from, where it is a backbone of ``sola_vision``."""
        return self.source.spec

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of tokens per stage of a backbone, after padding; none of another model."""
        return () if self.spec is None else self.spec.token_grids(self.resolution.height, self.resolution.width)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens per stage of a backbone, after padding; none of another model."""
        return tuple(rows * columns for rows, columns in self.grids)

    @property
    def padded(self) -> bool:
        """Whether a side is no multiple of a backbone's stride, so that patches or mergings were padded."""
        if self.spec is None:
            return False
        return bool(self.resolution.height % self.spec.stride or self.resolution.width % self.spec.stride)


_ALL = re.compile(r"all\s+(\w)")


def written_out(pattern: str, spec: BackboneSpec) -> str:
    """A pattern as it is, and ``all L`` as as many as the backbone has layers."""
    same = _ALL.fullmatch(pattern.strip())
    return pattern if same is None else re.sub(r"\w", same[1], spec.pattern)


def read_spec(model: str, pattern: str | None = None) -> BackboneSpec:
    """The spec of a preset, under another pattern if one is given; raises ``ValueError`` that names the mistake.

    ``sola_t[LL|LL|SSSSSS|SS]``, the way a spec under another pattern is called, reads like the two apart. ``all L`` is a
    pattern too.
    """
    if ":" in model:
        raise ValueError(f"model: expected a preset such as sola_t, got {model!r}")
    name, bracket, rest = model.partition("[")
    if bracket and rest.endswith("]"):
        if pattern is not None:
            raise ValueError(f"pattern: {model!r} has one already, got {pattern!r} as well")
        model, pattern = name, rest.removesuffix("]")
    spec = get_spec(model)
    if pattern is None:
        return spec
    changed = spec.with_pattern(written_out(pattern, spec))
    if changed.pattern == spec.pattern:
        return spec
    return changed.with_pattern(changed.pattern, name=f"{model}[{changed.pattern}]")
