"""What ``sola-profile kernels`` runs: an operator at a shape, in a dtype, mode and number of threads. Torch-free."""

# B batch, H heads, N tokens, D head dim, C channels

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isqrt

from sola_profile.case import DTYPES, MOST_THREADS, nearest

FORWARD, BOTH = "forward", "forward+backward"
KERNEL_MODES = (FORWARD, BOTH)
DEFAULT_DTYPES = ("float32", "bfloat16")

WKV, SHIFT_MIX, LAYER_NORM, CHANNEL_MIX = "wkv", "shift_mix", "layer_norm", "channel_mix"
# RetNet's: what flash-linear-attention computes, and only beside that, in the report on CUDA
PLAIN_RETENTION = "retention"
# they take a decay of every head
DECAYED = ("decay_attention", "causal_decay_attention", PLAIN_RETENTION)
# they take (B, N, C)
WITHOUT_HEADS = (WKV, SHIFT_MIX, LAYER_NORM, CHANNEL_MIX)
# hidden units of a channel mix for every channel, as Vision-RWKV and most feed-forward parts have them
HIDDEN_RATIO = 4
# mixes of a token, as many as the WKV layer wants: the powers of c/C that its shares begin as
MIX_POWERS = (1.0, 1.0, 0.5)
MIXES = len(MIX_POWERS)
# name → what it computes, of all that the CPU's report has
KERNELS: Mapping[str, str] = {
    "softmax_attention": "softmax(q kᵀ / √D) v",
    "linear_attention": "φ(q) Σ φ(k)ᵀ v over its normaliser, φ = ELU + 1",
    "decay_attention": "linear_attention with weights γ^|i−j|, in both directions",
    "causal_decay_attention": "linear_attention with weights γ^(i−j) on the tokens up to i",
    WKV: "bidirectional WKV of Vision-RWKV",
    SHIFT_MIX: "m ⊙ x + (1 − m) ⊙ shift(x) for three m, on the grid nearest to a square",
    LAYER_NORM: "w ⊙ (x − mean) / √(variance + ε) + b over the channels of every token",
    CHANNEL_MIX: f"sigmoid(R x_r) ⊙ V relu(K x_k)², with {HIDDEN_RATIO} hidden units for every channel",
}

# sides beyond this are typing mistakes: their products leave 64 bits
MOST = 2**28

_LAYOUTS = {3: "(B, N, C)", 4: "(B, H, N, D)"}


@dataclass(frozen=True, order=True)
class Shape:
    """``(B, H, N, D)`` of attention or ``(B, N, C)`` of the others; written ``1x6x4096x64`` or ``1x16384x96``."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) not in _LAYOUTS:
            raise ValueError(
                f"expected BxHxNxD (or BxNxC for {', '.join(WITHOUT_HEADS)}), such as 1x6x4096x64, got {self}"
            )
        if not all(1 <= size <= MOST for size in self.sizes):
            raise ValueError(f"every size is 1 to {MOST:,}, got {self}")
        if not self.without_heads and self.dim > 256:
            raise ValueError(f"the head dim D is at most 256, got {self}")

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read ``1x6x4096x64``; raises ``ValueError`` with the nearest right spelling."""
        if re.fullmatch(r"\d+(x\d+)*", text.strip()):
            return cls(tuple(map(int, text.strip().split("x"))))
        numbers = re.findall(r"\d+", text)
        hint = f"; did you mean {'x'.join(numbers)!r}?" if len(numbers) in _LAYOUTS else ""
        raise ValueError(f"expected a shape such as 1x6x4096x64 or 1x16384x96, got {text.strip()!r}{hint}")

    @property
    def without_heads(self) -> bool:
        """Whether this is ``(B, N, C)``."""
        return len(self.sizes) == 3

    @property
    def batch(self) -> int:
        """B."""
        return self.sizes[0]

    @property
    def heads(self) -> int:
        """H; 1 without heads."""
        return 1 if self.without_heads else self.sizes[1]

    @property
    def tokens(self) -> int:
        """N."""
        return self.sizes[-2]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens, as near to a square as N can be cut; the square of 3136 is 56 × 56."""
        rows = next(rows for rows in range(isqrt(self.tokens), 0, -1) if self.tokens % rows == 0)
        return rows, self.tokens // rows

    @property
    def dim(self) -> int:
        """D, or C without heads."""
        return self.sizes[-1]

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes))


def takes(op: str, shape: Shape) -> bool:
    """Whether an operator takes shapes of this rank."""
    return shape.without_heads == (op in WITHOUT_HEADS)


@dataclass(frozen=True)
class KernelCase:
    """One operator at one shape, with the settings of its run. ``threads``: of PyTorch's CPU operators."""

    op: str
    shape: Shape
    dtype: str
    mode: str
    threads: int

    def __post_init__(self) -> None:
        if not takes(self.op, self.shape):
            raise ValueError(
                f"{self.op} takes shapes {_LAYOUTS[3 if self.op in WITHOUT_HEADS else 4]}, got {self.shape}"
            )

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.op} {self.shape} {self.dtype} {self.mode} {threads}"


# at the last one the time of a call outside the arithmetic counts
ATTENTION_SHAPES = tuple(
    map(Shape.parse, ("8x6x196x64", "1x6x1024x64", "1x6x4096x64", "1x3x16384x32", "1x8x4096x128", "1x3x49x32"))
)
TOKEN_SHAPES = tuple(map(Shape.parse, ("8x3136x96", "1x16384x96", "1x65536x192")))
# at few tokens the weights are most of what is moved
CHANNEL_SHAPES = tuple(
    map(Shape.parse, ("1x16384x96", "1x4096x192", "1x1024x384", "8x196x384", "1x49x512", "1x65536x96"))
)
QUICK_SHAPES = (Shape.parse("1x6x1024x64"), Shape.parse("1x16384x96"))


def shapes_of(op: str) -> tuple[Shape, ...]:
    """Where an operator is looked at unless shapes are given."""
    if op == CHANNEL_MIX:
        return CHANNEL_SHAPES
    return TOKEN_SHAPES if op in WITHOUT_HEADS else ATTENTION_SHAPES


@dataclass(frozen=True)
class Choice:
    """What to combine into cases. ``shapes``: empty for those of each operator."""

    ops: tuple[str, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    threads: tuple[int, ...]

    def cases(self) -> tuple[KernelCase, ...]:
        """Every operator at every shape that it takes, shape by shape; raises ``ValueError`` for a shape of no one."""
        found = [
            KernelCase(op, shape, *rest)
            for op, mode in product(self.ops, self.modes)
            for shape in self.shapes or shapes_of(op)
            if takes(op, shape)
            for rest in [(dtype, mode, threads) for dtype in self.dtypes for threads in self.threads]
        ]
        for shape in self.shapes:
            if shape not in {case.shape for case in found}:
                raise ValueError(f"none of {', '.join(self.ops)} takes the shape {shape}, {_LAYOUTS[len(shape.sizes)]}")
        return tuple(found)


def parse_names(texts: Sequence[str], known: Sequence[str], what: str) -> tuple[str, ...]:
    """Read names from comma lists, each once; an unknown one raises ``ValueError`` with the nearest known name."""
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"{what}: expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return tuple(dict.fromkeys(names))


def parse_shapes(texts: Sequence[str]) -> tuple[Shape, ...]:
    """Read shapes from comma lists, each once."""
    return tuple(dict.fromkeys(Shape.parse(part) for text in texts for part in text.split(",")))


def parse_threads(text: str, cores: int) -> tuple[int, ...]:
    """Read ``1,all``: numbers of threads, ascending; ``all`` is one for every core."""
    found = set()
    for part in text.split(","):
        name = part.strip()
        if name != "all" and not (name.isdigit() and 1 <= int(name) <= MOST_THREADS):
            wanted = f"numbers of 1 to {MOST_THREADS} or all, such as 1,all"
            raise ValueError(f"threads: expected {wanted}, got {name!r}{nearest(name, ['all'])}")
        found.add(cores if name == "all" else int(name))
    return tuple(sorted(found))


def parse_dtypes(texts: Sequence[str]) -> tuple[str, ...]:
    """Read dtypes from comma lists."""
    return parse_names(texts, DTYPES, "dtype")
