"""What the CUDA kernels are meant to reach, as data: a case, against what, and how much. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from sola_profile.kernel_case import BOTH, FORWARD, WKV, KernelCase, Shape

COPY = "copy"  # share of the measured copy bandwidth, for the least bytes that the case moves
FLASH, BEST_SDPA, RETENTION, BIDIRECTIONAL = "SDPA flash", "best SDPA", "fla", "flash_bla"


@dataclass(frozen=True)
class Target:
    """``wanted``: share of copy bandwidth against ``copy``, otherwise the peer's time over ours. None: to be shown only."""

    case: KernelCase
    against: str
    wanted: float | None


@dataclass(frozen=True)
class ModelTarget:
    """A whole model, forward in bfloat16: the time on PyTorch's own routes over ours."""

    model: str
    batch: int
    side: int
    wanted: float


def _case(op: str, shape: str, mode: str, dtype: str = "bfloat16") -> KernelCase:
    # threads are PyTorch's on the CPU, which has nothing to do here
    return KernelCase(op, Shape.parse(shape), dtype, mode, 1)


def _both(op: str, shape: str, against: str, wanted: tuple[float, float], dtype: str = "bfloat16") -> list[Target]:
    modes = zip((FORWARD, BOTH), wanted, strict=True)
    return [Target(_case(op, shape, mode, dtype), against, least) for mode, least in modes]


def targets() -> tuple[Target, ...]:
    """All of them, in the order of the report. Shapes are BxHxNxD, of WKV BxNxC."""
    found = _both("linear_attention", "2x16x32768x64", COPY, (0.80, 0.65))
    for tokens in (4096, 16384, 65536):
        wanted = 0.60 if tokens >= 16384 else None
        found.append(Target(_case("linear_attention", f"1x6x{tokens}x64", FORWARD), COPY, wanted))
    for tokens in (512, 4096, 16384):
        found.append(Target(_case("linear_attention", f"1x6x{tokens}x64", FORWARD), BEST_SDPA, 1.0))
    # the shapes at which flash-linear-attention measures itself
    for shape in ("1x96x8192x128", "4x64x4096x128", "8x32x2048x256"):
        found += _both("causal_decay_attention", shape, RETENTION, (1.5, 2.0))
    for shape in ("8x3136x192", "1x65536x192"):
        for dtype in ("float32", "bfloat16"):
            found += _both(WKV, shape, COPY, (0.60, 0.40), dtype)
    for dim in (64, 128):
        for tokens in (4096, 16384):
            found += _both("softmax_attention", f"1x16x{tokens}x{dim}", FLASH, (0.9, 0.8))
    return tuple(found)


MODEL_TARGETS = (ModelTarget("sola_t", 8, 1024, 1.5), ModelTarget("sola_s", 8, 1024, 1.5))
