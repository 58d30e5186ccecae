"""Measures the CUDA kernels beside their peers, with torch and the standard library alone.

Routes of a case take turns; before every call the L2 cache is flushed by writing a buffer several times its size, which
also lets the host run ahead, so that launches don't count. CUDA events give the times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import sola_vision
from sola_profile.cost.kernels import work
from sola_profile.errors import first_line
from sola_profile.kernel_case import BOTH, DECAYED, PLAIN_RETENTION, WKV, KernelCase
from sola_profile.kernel_cuda_result import NOT_MEASURED, WITH, WITHOUT, CudaReport, FeatureRow, RouteRow, Row, Timing
from sola_profile.kernel_routes import implied_routes
from sola_profile.kernel_targets import (
    AUTO,
    BEST_SDPA,
    BIDIRECTIONAL,
    COPY,
    FLASH,
    OWN,
    RETENTION,
    FeatureCase,
    ModelTarget,
    RouteCase,
    Target,
)
from sola_profile.kernel_workload import Inputs, make_inputs, make_step, tensors_of
from sola_profile.peers.attention import fused_softmax
from sola_profile.peers.swap import pytorch_operators
from sola_profile.peers.table import COMPILED, OURS, Function, compile_route, routes
from sola_profile.workload import Step
from sola_vision import ops
from sola_vision.ops._extension import extension

ROUNDS, WARM_UP = 21, 3
# a route that has taken longer takes no more turns, and has one sample at least
ROUTE_S = 1.5
COPY_BYTES = 2**30
MATMUL_SIDE = 8192
# These compile or tune for every shape anew. They come when all else is done, and start nothing when it is late.
SLOW_TO_START = (RETENTION, COMPILED, BIDIRECTIONAL)
NO_TIME = "no time was left to compile it"
# beyond this SDPA beside a linear operator only takes time
MOST_QUADRATIC_TOKENS = 16384
# of a size at which backends of softmax attention compete
ROUTE_ROUNDS = 9
ROUTE_BACKENDS = (OWN, "flash", "cudnn", "efficient")


class Clock:
    """Times steps by CUDA events behind a flush of the L2 cache.

    ``slow_until``: when it gets too late for routes that are slow to start, by ``time.monotonic``, which all processes
    of a machine share.
    """

    def __init__(self, slow_until: float = float("inf")) -> None:
        self.slow_until = slow_until
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        # a third of a millisecond at 3 TB/s: by then the host has asked for all launches of a step
        self._flush = torch.empty(max(4 * l2, 2**30), dtype=torch.uint8, device="cuda")

    def too_late(self) -> bool:
        """Whether no slow route may start any more."""
        return time.monotonic() > self.slow_until

    def time(self, step: Callable[[], object]) -> float:
        """Seconds of one call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def best(self, step: Callable[[], object]) -> float:
        """The shortest of several, for ceilings."""
        for _ in range(WARM_UP):
            step()
        return min(self.time(step) for _ in range(ROUNDS))


def measure_copy(clock: Clock) -> float:
    """Read and written bytes per second of a copy far beyond the caches."""
    source, target = (torch.rand(COPY_BYTES // 4, device="cuda") for _ in range(2))
    return 2 * COPY_BYTES / clock.best(lambda: target.copy_(source))


def measure_matmul(clock: Clock) -> float:
    """FLOP/s of a large product in bfloat16."""
    a, b = (torch.rand(MATMUL_SIDE, MATMUL_SIDE, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    return 2 * MATMUL_SIDE**3 / clock.best(lambda: torch.mm(a, b, out=out))


def _pinned(backend: Any, q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    from torch.nn.attention import sdpa_kernel

    with sdpa_kernel(backend):
        return fused_softmax(q, k, v)


def _retention(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    # the same decays as ours, which it works out itself
    out: Tensor = import_module("fla.ops.retention").chunk_retention(q, k, v, scale=1.0)[0]
    return out


def _bidirectional(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    # takes mapped queries and keys, head by head
    attend = import_module("flash_bla.ops.linear_attn.fused").linear_attention
    q, k, v = (x.transpose(1, 2) for x in (functional.elu(q) + 1, functional.elu(k) + 1, v))
    out: Tensor = attend(q, k, v).transpose(1, 2)
    return out


def by_backend(backend: str, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Our operator with its forward by the backend of this name; ``auto`` is the list of routes."""
    with ops.softmax_backend(backend):
        return ops.softmax_attention(q, k, v, causal=causal)


def peers(case: KernelCase, backend: str = "", *, compiled: bool = True) -> Mapping[str, Function]:
    """Routes of a case by name, ours first; SDPA's backends are pinned one by one. ``backend``: of ours in softmax."""
    found: dict[str, Function] = {}
    for route in routes(case.op, compiled=compiled):
        # SDPA's own choice of backend is none that can be compared
        if route.name != "SDPA" and not route.refusal(case):
            found[route.name] = compile_route(route) if route.name == COMPILED else route.function
    if backend:
        found[OURS] = partial(by_backend, backend)
    if case.op in ("softmax_attention", "linear_attention") and case.shape.tokens <= MOST_QUADRATIC_TOKENS:
        from torch.nn.attention import SDPBackend

        backends = {
            FLASH: SDPBackend.FLASH_ATTENTION,
            "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
            "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
        }
        found |= {name: partial(_pinned, backend) for name, backend in backends.items()}
    if case.op == PLAIN_RETENTION:
        found[RETENTION] = _retention
    if case.op == "linear_attention":
        found[BIDIRECTIONAL] = _bidirectional
    return found


def race(steps: Mapping[str, Step], clock: Clock, rounds: int = ROUNDS) -> dict[str, Timing]:
    """All steps in turn; one that fails says why and drops out."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    spent_s = dict.fromkeys(steps, 0.0)
    missing: dict[str, str] = {}
    for turn in range(WARM_UP + rounds):
        for name, step in steps.items():
            if name in missing or (spent_s[name] > ROUTE_S and (turn < WARM_UP or samples[name])):
                continue
            if turn == 0 and name in SLOW_TO_START and clock.too_late():
                missing[name] = NO_TIME
                continue
            begin = time.perf_counter()
            try:
                time_s = clock.time(step)
            except Exception as error:  # whatever a peer's compiler may raise
                missing[name] = first_line(error)
                continue
            if turn > 0 or name not in SLOW_TO_START:
                spent_s[name] += time.perf_counter() - begin
            if turn >= WARM_UP:
                samples[name].append(time_s)
    return {
        name: Timing(name, () if name in missing else tuple(samples[name]), missing=missing.get(name, ""))
        for name in steps
    }


def _largest_difference(mine: Callable[[], list[Tensor]], theirs: Callable[[], list[Tensor]]) -> float | None:
    """Of results in pairs, ‖a − b‖ / ‖b‖; None where one doesn't run, or a number is none."""
    try:
        pairs = list(zip(mine(), theirs(), strict=True))
        found = [_relative(a.double(), b.double()) for a, b in pairs]
    except Exception:
        return None
    return max(found) if all(map(isfinite, found)) else None


def _relative(a: Tensor, b: Tensor) -> float:
    distance = float((a - b).norm())
    return distance / float(b.norm()) if distance else 0.0


def _difference(mine: Function, theirs: Function, inputs: Inputs) -> float | None:
    """Of the outputs."""

    def of(function: Function) -> list[Tensor]:
        with torch.inference_mode():
            return list(tensors_of(function(*inputs)))

    return _largest_difference(partial(of, mine), partial(of, theirs))


def _reached(target: Target, timings: Mapping[str, Timing], copy_bytes_per_s: float) -> float | None:
    ours = timings[OURS].median_s
    if ours is None:
        return None
    if target.against == COPY:
        return work(target.case).moved_bytes / ours / copy_bytes_per_s
    sdpa = [timing.median_s for name, timing in timings.items() if name.startswith("SDPA")]
    if target.against == BEST_SDPA:
        theirs = min((time_s for time_s in sdpa if time_s is not None), default=None)
    else:
        theirs = timings[target.against].median_s if target.against in timings else None
    return None if theirs is None else theirs / ours


def _bound(function: Function, constants: Inputs) -> Function:
    return lambda *inputs: function(*inputs, *constants)


def _steps(target: Target, *, slow: bool) -> tuple[Inputs, Mapping[str, Function], Mapping[str, Step]]:
    """Inputs, routes and their steps: of ours and of those that are slow to start, or of all others."""
    case = target.case
    inputs = make_inputs(case, "cuda")
    found = peers(case, target.backend, compiled=slow)
    functions = {name: it for name, it in found.items() if name == OURS or (name in SLOW_TO_START) == slow}
    if case.op in DECAYED:
        # RetNet's decays are constants: no route is asked for a gradient of them
        inputs, decays = inputs[:3], inputs[3:]
        functions = {name: _bound(function, decays) for name, function in functions.items()}
    return inputs, functions, {name: make_step(case, function, inputs) for name, function in functions.items()}


def measure_target(target: Target, clock: Clock, copy_bytes_per_s: float) -> Row:
    """Every route of the target's case, but for those that are slow to start."""
    case = target.case
    inputs, functions, steps = _steps(target, slow=False)
    timings = race(steps, clock)
    ours = functions[OURS]
    # eager routes compute the same; of float16-sized quadratic ones there may be none
    same = next((name for name in functions if name in ("eager", "chunked", "cumsum")), None)
    if same is not None and (case.op != WKV or case.dtype == "float32"):
        timings[OURS] = replace(timings[OURS], difference=_difference(ours, functions[same], inputs))
    return Row(target, tuple(timings.values()), _reached(target, timings, copy_bytes_per_s))


def measure_slow(row: Row, clock: Clock, copy_bytes_per_s: float) -> Row:
    """A row with the routes that are slow to start, beside ours once more where the target is against one of them."""
    target = row.target
    if isinstance(target, ModelTarget):
        return row
    if clock.too_late():
        late = (Timing(name, missing=NO_TIME) for name in peers(target.case) if name in SLOW_TO_START)
        return replace(row, timings=(*row.timings, *late))
    found = race(_steps(target, slow=True)[2], clock)
    timings = {timing.name: timing for timing in row.timings} | {
        name: timing for name, timing in found.items() if name != OURS
    }
    if target.against not in SLOW_TO_START:
        return replace(row, timings=tuple(timings.values()))
    timings[OURS] = replace(found[OURS], difference=row.timings[0].difference if row.timings else None)
    return Row(target, tuple(timings.values()), _reached(target, timings, copy_bytes_per_s))


def measure_model(target: ModelTarget, clock: Clock) -> Row:
    """One forward pass on our operators and on PyTorch's."""
    model = sola_vision.create_model(target.model).to("cuda", torch.bfloat16).eval()
    images = torch.randn(target.batch, 3, target.side, target.side, device="cuda").bfloat16()

    def step(operators: Callable[[], Any]) -> None:
        with torch.inference_mode(), operators():
            model(images)

    timings = race(
        {OURS: partial(step, partial(ops.softmax_backend, AUTO)), "PyTorch": partial(step, pytorch_operators)}, clock
    )
    ours, theirs = (timing.median_s for timing in timings.values())
    return Row(target, tuple(timings.values()), None if ours is None or theirs is None else theirs / ours)


def measure_route(case: RouteCase, clock: Clock) -> RouteRow:
    """Our operator by every backend in turn, each held against our own kernel."""
    inputs = make_inputs(case.kernel, "cuda")
    functions = {name: partial(by_backend, name, causal=case.causal) for name in ROUTE_BACKENDS}
    steps = {name: make_step(case.kernel, function, inputs) for name, function in functions.items()}
    timings = race(steps, clock, ROUTE_ROUNDS)
    for name, timing in timings.items():
        if name != OWN and timing.samples_s:
            timings[name] = replace(timing, difference=_difference(functions[name], functions[OWN], inputs))
    return RouteRow(case, tuple(timings.values()))


def measure_feature(case: FeatureCase, clock: Clock) -> FeatureRow:
    """Our own kernels with a feature and without it and nothing else, in turn, the results held against each other."""
    kernel = case.kernel
    inputs = make_inputs(kernel, "cuda")
    ours = peers(kernel, OWN if kernel.op == "softmax_attention" else "", compiled=False)[OURS]
    step = make_step(kernel, ours, inputs)
    off = ops.cuda_features_off()

    def under(*names: str) -> None:
        with ops.cuda_without(*off, *names):
            step()

    def results(*names: str) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_(kernel.mode == BOTH) for tensor in inputs]
        with ops.cuda_without(*off, *names):
            (out,) = tensors_of(ours(*leaves))
            grad = torch.randn(out.shape, generator=torch.Generator(out.device).manual_seed(0), device=out.device)
            return [out.detach(), *(torch.autograd.grad(out, leaves, grad.to(out.dtype)) if out.requires_grad else ())]

    timings = race({WITH: under, WITHOUT: partial(under, case.feature)}, clock)
    difference = _largest_difference(partial(results, case.feature), results)
    timings[WITHOUT] = replace(timings[WITHOUT], difference=difference)
    return FeatureRow(case, tuple(timings.values()))


def follow(report: CudaReport) -> None:
    """Let softmax attention go by the list that the times of its backends imply, from now on."""
    extension.set_softmax_routes([extension.SoftmaxRoute(**asdict(route)) for route in implied_routes(report)])


def measure_ceilings(clock: Clock) -> CudaReport:
    """The device, and no rows yet."""
    major, minor = torch.cuda.get_device_capability()
    found = unmeasured(torch.cuda.get_device_name(), (), ())
    found = replace(found, torch=torch.__version__, cuda=torch.version.cuda, capability=f"{major}.{minor}")
    found = replace(found, features_off=ops.cuda_features_off())
    return replace(found, copy_bytes_per_s=measure_copy(clock), matmul_flops_per_s=measure_matmul(clock))


def unmeasured(
    device: str,
    targets: tuple[Target, ...],
    models: tuple[ModelTarget, ...],
    cases: tuple[RouteCase, ...] = (),
    features: tuple[FeatureCase, ...] = (),
) -> CudaReport:
    """The same report before there was a device."""
    rows = (*map(Row, targets), *map(Row, models))
    routes = tuple(map(RouteRow, cases))
    return CudaReport(
        device, NOT_MEASURED, None, NOT_MEASURED, None, None, rows, routes, tuple(map(FeatureRow, features))
    )
