"""What the CUDA kernels are meant to reach, as data: a case, against what, and how much. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from sola_profile.kernel_case import (
    BOTH,
    CHANNEL_MIX,
    FORWARD,
    LAYER_NORM,
    PLAIN_RETENTION,
    SHIFT_MIX,
    WKV,
    KernelCase,
    Shape,
)

COPY = "copy"  # share of the measured copy bandwidth, for the least bytes that the case moves
EAGER = "eager"  # the same of PyTorch's operators
FLASH, BEST_SDPA, RETENTION, BIDIRECTIONAL = "SDPA flash", "best SDPA", "fla", "flash_bla"
# softmax attention by our own kernel, and by what the list of routes says
OWN, AUTO = "own", "auto"
# the op as a whole against the best backend
WHOLE_OP = 0.98


@dataclass(frozen=True)
class Target:
    """``wanted``: share of copy bandwidth against ``copy``, otherwise the peer's time over ours. None: to be shown only.

    ``backend``: of softmax attention, ``own`` or ``auto``; empty for the other operators.
    """

    case: KernelCase
    against: str
    wanted: float | None
    backend: str = ""


@dataclass(frozen=True)
class RouteCase:
    """A size at which the backends of softmax attention are held against each other, forward."""

    dim: int
    dtype: str
    tokens: int
    causal: bool

    @property
    def kernel(self) -> KernelCase:
        """The same without its mask."""
        return _case("softmax_attention", f"1x{ROUTE_HEADS}x{self.tokens}x{self.dim}", FORWARD, self.dtype)


@dataclass(frozen=True)
class FeatureCase:
    """A call that our kernels make with and without a feature of newer devices, ``sola_vision.ops.CUDA_FEATURES``."""

    feature: str
    kernel: KernelCase


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


def _both(
    op: str,
    shape: str,
    against: str,
    wanted: tuple[float | None, float | None],
    dtype: str = "bfloat16",
    backend: str = "",
) -> list[Target]:
    modes = zip((FORWARD, BOTH), wanted, strict=True)
    return [Target(_case(op, shape, mode, dtype), against, least, backend) for mode, least in modes]


# what nobody has set a figure for
_SHOWN = (None, None)


def targets() -> tuple[Target, ...]:
    """All of them, in the order of the report. Shapes are BxHxNxD, of WKV BxNxC."""
    found = _both("linear_attention", "2x16x32768x64", COPY, (0.80, 0.65))
    for tokens in (4096, 16384, 65536):
        wanted = 0.60 if tokens >= 16384 else None
        found.append(Target(_case("linear_attention", f"1x6x{tokens}x64", FORWARD), COPY, wanted))
    for tokens in (512, 4096, 16384):
        found.append(Target(_case("linear_attention", f"1x6x{tokens}x64", FORWARD), BEST_SDPA, 1.0))
    for dtype in ("float16", "float32"):
        found += _both("linear_attention", "2x16x32768x64", COPY, _SHOWN, dtype)
    # the shapes at which flash-linear-attention measures itself, and one of them with our feature map and normaliser
    for shape in ("1x96x8192x128", "4x64x4096x128", "8x32x2048x256"):
        found += _both(PLAIN_RETENTION, shape, RETENTION, (1.5, 2.0))
    found += _both("causal_decay_attention", "4x64x4096x128", COPY, _SHOWN)
    # decays as backbones have them, in both directions
    found += _both("decay_attention", "8x6x4096x64", COPY, _SHOWN)
    found += _without_heads()
    shapes = [f"1x16x{tokens}x{dim}" for dim in (64, 128) for tokens in (4096, 16384)]
    for shape in shapes:
        found += _both("softmax_attention", shape, FLASH, (0.9, 0.8), backend=OWN)
    for shape in shapes:
        # no wish for both: the backward is ours whoever is faster, because it is deterministic
        found += _both("softmax_attention", shape, BEST_SDPA, (WHOLE_OP, None), backend=AUTO)
    return tuple(found)


def _without_heads() -> list[Target]:
    """What takes BxNxC."""
    found = []
    for shape in ("8x3136x192", "1x65536x192"):
        for dtype in ("float32", "bfloat16"):
            found += _both(WKV, shape, COPY, (0.60, 0.40), dtype)
    found += _both(SHIFT_MIX, "8x65536x96", COPY, _SHOWN)
    for shape in ("8x65536x96", "8x4096x384"):
        found += _both(LAYER_NORM, shape, COPY, _SHOWN)
    # three stages of backbones at 1,024 pixels, the last one beyond what our kernel takes
    for shape in ("8x65536x96", "8x4096x192", "8x4096x384"):
        found += _both(CHANNEL_MIX, shape, EAGER, _SHOWN)
    return found


ROUTE_HEADS = 16
ROUTE_DIMS = (32, 64, 128)
# float32 has no tensor cores, and longer sequences take too much of a lent machine's time
ROUTE_TOKENS = {"bfloat16": (1024, 4096, 16384), "float16": (1024, 4096, 16384), "float32": (1024, 4096)}


def route_cases() -> tuple[RouteCase, ...]:
    """All sizes, in the order of the report."""
    return tuple(
        RouteCase(dim, dtype, tokens, causal)
        for dtype, sizes in ROUTE_TOKENS.items()
        for dim in ROUTE_DIMS
        for tokens in sizes
        for causal in (False, True)
    )


# where a feature was chosen by counting what it saves; a device says whether it does
_FEATURES = {
    "clusters": (
        ("linear_attention", "1x6x512x64", FORWARD),
        ("linear_attention", "1x6x4096x64", FORWARD),
        ("linear_attention", "8x12x196x64", BOTH),
        # eight blocks for each of 64 heads fill an H100 once
        ("linear_attention", "8x8x4096x64", FORWARD),
        ("linear_attention", "8x8x4096x64", BOTH),
    ),
    "wgmma": (
        ("softmax_attention", "1x16x1024x64", FORWARD),
        ("softmax_attention", "1x16x4096x64", FORWARD),
        ("softmax_attention", "1x16x4096x64", BOTH),
        ("softmax_attention", "1x16x4096x128", FORWARD),
        ("softmax_attention", "1x16x4096x128", BOTH),
        (CHANNEL_MIX, "1x3136x96", FORWARD),
        (CHANNEL_MIX, "8x65536x96", FORWARD),
        (CHANNEL_MIX, "8x4096x192", FORWARD),
    ),
    "pdl": (
        ("linear_attention", "1x6x16384x64", FORWARD),
        ("linear_attention", "1x6x16384x64", BOTH),
        (WKV, "8x3136x192", FORWARD),
        (WKV, "8x3136x192", BOTH),
    ),
    # what devices of compute capability 8.6, 8.9 and 12.0 run at wide heads
    "shared": (("softmax_attention", "1x16x4096x256", BOTH),),
}


def feature_cases() -> tuple[FeatureCase, ...]:
    """All calls, in the order of the report, in bfloat16."""
    return tuple(FeatureCase(feature, _case(*call)) for feature, calls in _FEATURES.items() for call in calls)


MODEL_TARGETS = (ModelTarget("sola_t", 8, 1024, 1.5), ModelTarget("sola_s", 8, 1024, 1.5))
