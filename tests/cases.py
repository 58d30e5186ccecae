"""The cases that all op tests share: shapes, dtypes and options, and how to make their inputs."""

# B batch, N queries, M keys, H heads, D head dim, V value head dim, C channels

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sola_vision import ops
from sola_vision.ops import reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One call: the op's name, the sizes of its inputs, and its options."""

    op: str
    sizes: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()
    # decay per head of linear attention: the slowest forgetting; None for no decay
    decay: float | None = None
    # WKV: decay per token and bonus, and how widely the keys spread
    rate: float = 0.1
    bonus: float = 0.3
    spread: float = 1.0
    id: str = field(default="", compare=False)

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options)
        extra = f",decay={self.decay}" if self.decay is not None else ""
        if self.op == "wkv":
            extra = f",rate={self.rate},bonus={self.bonus},spread={self.spread}"
        return f"{self.op}{self.sizes}[{options}{extra}]"

    def inputs(self, dtype: torch.dtype, *, seed: int = 0) -> list[Tensor]:
        """Random inputs in ``dtype``; parameters (decay, bonus) in the dtype of the sums."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        sums = torch.float64 if dtype == torch.float64 else torch.float32
        if self.op == "shift_mix":
            *grid, mixes = self.sizes
            return [normal(*grid).to(dtype), torch.rand(mixes, grid[-1], generator=generator, dtype=sums)]
        if self.op == "layer_norm":
            # a mean of its own, which must not cost digits
            x, weight, bias = 3 + normal(*self.sizes), normal(self.sizes[2]), normal(self.sizes[2])
            return [tensor.to(dtype) for tensor in (x, weight, bias)]
        if self.op == "channel_mix":
            *tokens, channels, hidden = self.sizes
            weights = (normal(hidden, channels) / channels**0.5, normal(channels, hidden) / hidden**0.5)
            maps = (*weights, normal(channels, channels) / channels**0.5)
            return [tensor.to(dtype) for tensor in (normal(*tokens, channels), normal(*tokens, channels), *maps)]
        if self.op == "wkv":
            batch, tokens, channels = self.sizes
            spread = 0.5 + torch.rand(channels, generator=generator, dtype=torch.float64)
            k, v = normal(batch, tokens, channels) * self.spread, normal(batch, tokens, channels)
            return [k.to(dtype), v.to(dtype), (self.rate * spread).to(sums), (self.bonus * spread).to(sums)]
        batch, queries, keys, heads, dim, value_dim = self.sizes
        q, k = normal(batch, queries, heads, dim), normal(batch, keys, heads, dim)
        if dict(self.options).get("feature_map") == "identity" and dict(self.options).get("normalize", True):
            # keeps the normaliser away from zero, where any two results differ
            q, k = q.abs(), k.abs()
        tensors = [q.to(dtype), k.to(dtype), normal(batch, keys, heads, value_dim).to(dtype)]
        if self.decay is not None:
            tensors.append(torch.linspace(0.7, self.decay, heads, dtype=torch.float64).to(sums))
        return tensors

    @property
    def token_inputs(self) -> int:
        """How many inputs are tokens, or are multiplied with them in their dtype; the others are parameters."""
        return {"wkv": 2, "shift_mix": 1, "layer_norm": 1, "channel_mix": 5}.get(self.op, 3)

    def conditioning(self, dtype: torch.dtype) -> float:
        """How much the exponentials amplify a rounding: WKV's log-weights are sums of keys, bonus and decays.

        Half precision is rounded far more coarsely than the float32 in which the exponents are.
        """
        if self.op != "wkv" or dtype in (torch.bfloat16, torch.float16):
            return 1.0
        reach = self.rate if not self.options else self.rate * (self.sizes[1] - 1)
        return 1.0 + 3 * self.spread + abs(self.bonus) + abs(reach)

    def call(self, where: Any, inputs: list[Tensor]) -> Tensor:
        """Run ``where.<op>``, with ``where`` the compiled ops or the references."""
        function: Callable[..., Any] = getattr(where, self.op)
        if self.op == "shift_mix":
            return torch.stack(function(*inputs))
        if self.decay is not None:
            return function(*inputs[:3], decay=inputs[3], **dict(self.options))
        return function(*inputs, **dict(self.options))

    def run(self, inputs: list[Tensor]) -> Tensor:
        """The compiled op."""
        return self.call(ops, inputs)

    def refer(self, inputs: list[Tensor]) -> Tensor:
        """The definition in plain PyTorch."""
        return self.call(reference, inputs)


# every listed token count and head dim, with V ≠ D, odd remainders and more keys than queries
_ATTENTION_SIZES = (
    (1, 1, 1, 1, 8, 8),
    (2, 2, 63, 3, 24, 80),
    (1, 63, 2, 2, 1, 8),
    (2, 64, 64, 2, 32, 32),
    (1, 65, 197, 3, 64, 24),
    (1, 197, 65, 2, 80, 1),
    (1, 130, 300, 2, 128, 256),
    (1, 64, 130, 1, 256, 64),
    (1, 197, 197, 2, 33, 17),
    (1, 1000, 1000, 1, 64, 64),
    (2, 250, 130, 1, 100, 128),
)
# decayed or causal: as many keys as queries; several chunks, and a last chunk of one token
_CHUNKED_SIZES = (
    (1, 1, 1, 1, 8, 8),
    (2, 2, 2, 3, 24, 80),
    (1, 63, 63, 2, 1, 8),
    (2, 64, 64, 2, 32, 32),
    (1, 65, 65, 3, 64, 24),
    (1, 129, 129, 2, 128, 256),
    (1, 197, 197, 2, 33, 17),
    (1, 1000, 1000, 2, 16, 16),
    # several stretches of chunks on CUDA, and head dims that several blocks share
    (1, 300, 300, 1, 100, 140),
)


def softmax_cases() -> Iterator[Case]:
    for sizes, causal in itertools.product(_ATTENTION_SIZES, (False, True)):
        yield Case("softmax_attention", sizes, (("causal", causal),))
    # the last one is 0 as a float
    for scale, causal in itertools.product((3.0, -0.5, -5.0, 0.0, 1e-50), (False, True)):
        yield Case("softmax_attention", (1, 65, 65, 2, 32, 32), (("scale", scale), ("causal", causal)))


def wide_softmax_cases() -> Iterator[Case]:
    """Softmax attention on head dims for which CUDA devices with little shared memory have other tiles."""
    for case in softmax_cases():
        if max(case.sizes[4:]) > 64 and case.sizes[2] > 64:
            yield case


def linear_cases() -> Iterator[Case]:
    for sizes, feature_map, normalize in itertools.product(_ATTENTION_SIZES, ops.FEATURE_MAPS, (True, False)):
        if feature_map in ("elu1", "relu") or sizes in _ATTENTION_SIZES[3:6]:
            yield Case("linear_attention", sizes, (("feature_map", feature_map), ("normalize", normalize)))


def chunked_cases() -> Iterator[Case]:
    kinds = ((True, None), (True, 0.98), (False, 0.98))
    for sizes, (causal, decay) in itertools.product(_CHUNKED_SIZES, kinds):
        for feature_map, normalize in itertools.product(ops.FEATURE_MAPS, (True, False)):
            if feature_map == "elu1" or sizes in _CHUNKED_SIZES[4:6]:
                options = (("feature_map", feature_map), ("normalize", normalize), ("causal", causal))
                yield Case("linear_attention", sizes, options, decay=decay)
    # no forgetting at all in both directions, and a state that is gone after one token
    for decay in (1.0, 0.05):
        yield Case("linear_attention", (1, 200, 200, 1, 16, 16), (), decay=decay)


def wkv_cases() -> Iterator[Case]:
    token = (("decay_per", "token"),)
    sizes_of_all = (
        (2, 1, 5),
        (1, 2, 64),
        (2, 33, 70),
        (1, 65, 130),
        (3, 64, 1),
        (1, 197, 33),
        (1, 1000, 4),
        (3, 140, 70),
    )
    for sizes in sizes_of_all:
        yield Case("wkv", sizes, rate=3.0)
        yield Case("wkv", sizes, token)
    # tiles of every length down to one token, decays of both signs, widely spread keys
    for rate, bonus, spread in itertools.product((0.0, -0.5, 1.0, 5.0, 60.0), (0.3, -20.0, 30.0), (1.0, 20.0)):
        yield Case("wkv", (1, 70, 19), token, rate=rate, bonus=bonus, spread=spread)
    for bonus in (0.3, 90.0):
        yield Case("wkv", (1, 12, 19), token, rate=-60.0, bonus=bonus)
    # the farthest tokens outweigh near ones by more than a float's range
    yield Case("wkv", (1, 300, 5), rate=-150.0)


def shift_mix_cases() -> Iterator[Case]:
    """Sizes (B, H, W, C, K): grids down to one token, fewer than four channels, groups that split vectors."""
    grids = ((1, 1), (3, 5), (1, 7), (6, 1), (20, 17))
    for (rows, columns), channels in itertools.product(grids, (1, 3, 7, 24, 32, 130)):
        yield Case("shift_mix", (2, rows, columns, channels, 3))
    for mixes in (1, 2, 8):
        yield Case("shift_mix", (1, 5, 30, 96, mixes))


def layer_norm_cases() -> Iterator[Case]:
    """Sizes (B, N, C): tokens beyond whole ranges, widths of less than a vector, of whole vectors, and beyond any kernel."""
    for tokens, channels in itertools.product((1, 5, 130), (1, 3, 8, 24, 96, 100)):
        yield Case("layer_norm", (2, tokens, channels))
    for channels in (128, 192, 384, 512, 768, 1024, 1536, 2050, 4096):
        yield Case("layer_norm", (1, 9, channels))
    yield Case("layer_norm", (1, 300, 96), (("eps", 0.5),))


def channel_mix_cases() -> Iterator[Case]:
    """Sizes (B, N, C, M): a tile and a block of hidden units, one more and one less, odd widths, many hidden units."""
    for tokens in (1, 63, 64, 65, 197):
        yield Case("channel_mix", (1, tokens, 32, 128))
        yield Case("channel_mix", (2, tokens, 7, 29))
    for channels, hidden in ((1, 1), (3, 130), (24, 127), (96, 384), (130, 129), (256, 1000)):
        yield Case("channel_mix", (2, 70, channels, hidden))
    yield Case("channel_mix", (1, 1100, 16, 64))


# (B, N, C, M) of which CUDA's own kernels take those of 16-bit types: every width of tiles, widths between two of them,
# tiles and blocks of hidden units that aren't full
_MIX_KERNEL_SIZES = (
    (1, 1, 8, 8),
    (1, 64, 32, 64),
    (2, 65, 24, 40),
    (1, 200, 64, 200),
    (2, 99, 72, 136),
    (1, 193, 96, 72),
    (1, 385, 128, 128),
    (2, 65, 136, 32),
    (1, 257, 192, 104),
)


def mix_kernel_cases() -> Iterator[Case]:
    """Channel mix as CUDA's own kernels do it."""
    for sizes in _MIX_KERNEL_SIZES:
        yield Case("channel_mix", sizes)


# every width of a warpgroup's tiles, V ≠ D, one token beyond whole tiles, more keys than queries and fewer
_WARPGROUP_SIZES = (
    (130, 131, 32, 32),
    (200, 300, 64, 64),
    (300, 140, 128, 128),
    (193, 257, 40, 72),
    (128, 128, 24, 128),
    (129, 150, 104, 8),
)


def warpgroup_cases(batch: int, heads: int) -> Iterator[Case]:
    """Softmax attention as blocks of warpgroups do it (compute capability 9.0) where heads suffice to fill a device."""
    for queries, keys, dim, value_dim in _WARPGROUP_SIZES:
        for causal in (False, True):
            yield Case("softmax_attention", (batch, queries, keys, heads, dim, value_dim), (("causal", causal),))
    for scale in (3.0, -0.5, 0.0, 1e-50):
        yield Case("softmax_attention", (batch, 140, 140, heads, 32, 32), (("scale", scale),))


# of the ops that have CUDA kernels too
CUDA_CASES = (
    *softmax_cases(),
    *linear_cases(),
    *chunked_cases(),
    *wkv_cases(),
    *shift_mix_cases(),
    *layer_norm_cases(),
)
CASES = (*CUDA_CASES, *channel_mix_cases())

# one small case per schema and kind of call, for tests that cost much per case
SMALL_CUDA_CASES = (
    Case("softmax_attention", (1, 5, 7, 2, 4, 6)),
    Case("softmax_attention", (1, 6, 6, 2, 4, 4), (("causal", True),)),
    Case("linear_attention", (1, 5, 7, 2, 4, 6)),
    Case("linear_attention", (1, 5, 7, 2, 3, 2), (("feature_map", "exp"), ("normalize", False))),
    Case("linear_attention", (1, 70, 70, 2, 3, 2), (("causal", True),)),
    Case("linear_attention", (1, 70, 70, 2, 2, 3), (), decay=0.98),
    Case("linear_attention", (1, 67, 67, 2, 2, 3), (("normalize", False),), decay=0.98),
    Case("wkv", (2, 6, 3)),
    Case("wkv", (1, 40, 2), (("decay_per", "token"),)),
    Case("shift_mix", (2, 3, 4, 9, 2)),
    Case("layer_norm", (2, 5, 8)),
)
SMALL_CASES = (
    *SMALL_CUDA_CASES,
    Case("channel_mix", (2, 3, 4, 9)),
    Case("channel_mix", (1, 67, 2, 6)),
)


def in_turn(cases: tuple[Case, ...]) -> list[Case]:
    """One of every kind of call after another."""
    kinds: dict[tuple[str, bool], list[Case]] = {}
    for case in cases:
        chunked = case.decay is not None or (case.op == "linear_attention" and dict(case.options).get("causal", False))
        kinds.setdefault((case.op, chunked), []).append(case)
    return [case for case in itertools.chain(*itertools.zip_longest(*kinds.values())) if case is not None]
