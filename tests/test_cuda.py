"""The CUDA kernels on a GPU: the cases of the CPU against float64 on the same device, layouts, edges, streams and graphs.

Needs torch and pytest alone. Skipped, with a count, where there is no device. What says most in the shortest time comes
first, and all operators take turns: the device may be lent for minutes.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import channel_mix_checks as mix_checks
import device_checks as checks
import pytest
import torch
from against_reference import agrees
from cases import (
    CUDA_CASES,
    SMALL_CUDA_CASES,
    Case,
    channel_mix_cases,
    in_turn,
    mix_kernel_cases,
    warpgroup_cases,
    wide_softmax_cases,
)
from wkv_checks import WKV_CHECKS

from sola_vision import ops

_READY = torch.cuda.is_available() and bool(ops.build_info()["cuda_architectures"])
_TWINS = torch.cuda.device_count() > 1 and len({torch.cuda.get_device_name(i) for i in range(2)}) == 1
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not _READY, reason="needs a CUDA device and a build with nvcc")]

DTYPES = checks.HALF_AND_FLOAT
DEVICE = checks.Device("cuda", ops, tokens=65536)
MOST_BYTES = 20 << 30  # of the tensors beyond 2³¹ elements
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What the allocator hands out next holds NaN: an output that nobody writes shows."""
    if _READY:
        # references in float32 are what they say
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        blocks = [torch.full((size,), float("nan"), device="cuda") for size in (2**8, 2**14, 2**18, 2**22)]
        del blocks
    yield
    if _READY:
        torch.cuda.synchronize()


@dtypes
@pytest.mark.parametrize("case", SMALL_CUDA_CASES, ids=str)
def test_small_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    agrees(case, dtype, ops, "cuda")


@dtypes
@pytest.mark.parametrize("where", [ops, torch.ops.sola], ids=["function", "operator"])
def test_channel_mix(where, dtype: torch.dtype) -> None:
    """The function and the operator that graphs were recorded with."""
    for case in (*channel_mix_cases(), *mix_kernel_cases()):
        agrees(case, dtype, where, "cuda")


# enough tokens for blocks of warpgroups on a quarter of an H100's multiprocessors
@pytest.mark.parametrize("features", [(), ("wgmma",)], ids=["all features", "without wgmma"])
@pytest.mark.parametrize("dtype", checks.HALF_AND_FLOAT[1:], ids=str)
def test_channel_mix_by_one_kernel(dtype: torch.dtype, features: tuple[str, ...]) -> None:
    with ops.cuda_without(*features):
        for case in mix_kernel_cases():
            _batch, _tokens, *widths = case.sizes
            agrees(Case("channel_mix", (3, 1500, *widths)), dtype, ops, "cuda")


@dtypes
def test_layouts_of_channel_mix(dtype: torch.dtype) -> None:
    mix_checks.layouts(DEVICE, dtype)


@dtypes
def test_channel_mix_and_layer_norm_at_the_edge(dtype: torch.dtype) -> None:
    for value in checks.VALUES:
        mix_checks.nan_stays_in_its_token(DEVICE, value, dtype)
        checks.nan_stays_in_its_token(DEVICE, value, dtype)
    mix_checks.infinity_that_turns_units_off(DEVICE, dtype)
    mix_checks.backward_under_autocast(DEVICE, dtype)
    mix_checks.overflow_at_a_unit_that_is_off(DEVICE)
    checks.wide_parameters(DEVICE, dtype)


@dtypes
@pytest.mark.parametrize("case", checks.LONG_CASES, ids=str)
def test_several_ranges_and_stretches(case: Case, dtype: torch.dtype) -> None:
    agrees(case, dtype, ops, "cuda")


@dtypes
@pytest.mark.parametrize("case", [case for case in SMALL_CUDA_CASES if case.op != "softmax_attention"], ids=str)
def test_small_values_without_what_newer_devices_can_do(case: Case, dtype: torch.dtype) -> None:
    with ops.cuda_without(*ops.CUDA_FEATURES):
        agrees(case, dtype, ops, "cuda")


# as many heads as let blocks of warpgroups fill an H100
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", list(warpgroup_cases(8, 9)), ids=str)
def test_warpgroups(case: Case, dtype: torch.dtype) -> None:
    assert agrees(case, dtype, ops, "cuda")


@dtypes
def test_softmax_in_little_shared_memory(dtype: torch.dtype) -> None:
    with ops.cuda_without(*ops.CUDA_FEATURES):
        assert all(agrees(case, dtype, ops, "cuda") for case in wide_softmax_cases())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_warpgroups_give_the_same_bits(dim: int, causal: bool) -> None:
    case = Case("softmax_attention", (8, 400, 400, 9, dim, dim), (("causal", causal),))
    checks.same_bits_every_time(DEVICE, case, torch.bfloat16, lambda _: None)


@dtypes
@pytest.mark.parametrize("case", SMALL_CUDA_CASES, ids=str)
def test_strided_inputs(case: Case, dtype: torch.dtype) -> None:
    checks.strided_inputs(DEVICE, case, dtype)


@dtypes
@pytest.mark.parametrize("dim", [40, 64, 33])
def test_slices_of_one_projection(dtype: torch.dtype, dim: int) -> None:
    checks.slices_of_one_projection(DEVICE, dtype, dim)


@pytest.mark.parametrize("case", SMALL_CUDA_CASES, ids=str)
def test_expanded_gradients(case: Case) -> None:
    checks.expanded_gradients(DEVICE, case)


@dtypes
@pytest.mark.parametrize("sizes", checks.EMPTY_SIZES, ids=str)
@pytest.mark.parametrize("op", ["softmax_attention", "linear_attention"])
def test_empty_attention(op: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    checks.empty_inputs(DEVICE, sizes, op, dtype)


def test_empty_chunks_and_scans() -> None:
    checks.empty_chunks_and_scans(DEVICE)


@dtypes
@pytest.mark.parametrize("value", checks.VALUES)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("case", checks.FEW_TOKENS, ids=str)
def test_nan_and_inf(case: Case, index: int, value: float, dtype: torch.dtype) -> None:
    checks.nan_and_inf(DEVICE, case, index, value, dtype)


@dtypes
@pytest.mark.parametrize("value", checks.VALUES)
def test_nan_in_shift_mix_reaches_neighbours(value: float, dtype: torch.dtype) -> None:
    checks.nan_in_shift_mix_reaches_neighbours(DEVICE, value, dtype)


@pytest.mark.parametrize("value", checks.VALUES[:2])
@pytest.mark.parametrize("which", ["k", "v"])
def test_nan_in_wkv_stays_in_its_channel(which: str, value: float) -> None:
    checks.nan_in_wkv_stays_in_its_channel(DEVICE, which, value)


@pytest.mark.parametrize("causal", [False, True])
def test_decays_that_nobody_learns(causal: bool) -> None:
    checks.decays_that_nobody_learns(DEVICE, torch.ops.sola, causal=causal)


@dtypes
@pytest.mark.parametrize("kind", checks.KINDS, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_zero_normaliser(dtype: torch.dtype, eps: float, kind: dict) -> None:
    checks.zero_normaliser(DEVICE, dtype, kind, eps)


@dtypes
def test_large_scores(dtype: torch.dtype) -> None:
    checks.large_scores(DEVICE, dtype)


@pytest.mark.parametrize("case", checks.LONG_CASES, ids=str)
def test_a_thread_that_has_done_nothing_yet(case: Case) -> None:
    """The extension's own CUDA runtime finds the device there too."""
    inputs = DEVICE.inputs(case, torch.bfloat16)
    expected = DEVICE.run(case, inputs)
    with ThreadPoolExecutor(1) as pool:
        checks.same_bits(pool.submit(DEVICE.run, case, inputs).result(), expected)


@pytest.mark.skipif(not _TWINS, reason="needs two devices of a kind")
@pytest.mark.parametrize("case", checks.LONG_CASES, ids=str)
def test_another_device_than_the_current_one(case: Case) -> None:
    expected = DEVICE.run(case, DEVICE.inputs(case, torch.bfloat16))
    got = DEVICE.run(case, [tensor.to("cuda:1") for tensor in DEVICE.inputs(case, torch.bfloat16)])
    checks.same_bits([tensor.to("cuda:0") for tensor in got], expected)


def test_float64_and_mixed_devices_are_refused_by_name() -> None:
    q = torch.randn(1, 4, 1, 8, device="cuda")
    with pytest.raises(ValueError, match="q must be one of float32, bfloat16, float16 on cuda, got float64"):
        ops.softmax_attention(q.double(), q.double(), q.double())
    with pytest.raises(ValueError, match="k must be on the device of q, cuda:0, got cpu"):
        ops.softmax_attention(q, q.cpu(), q)


@dtypes
@pytest.mark.parametrize("case", checks.LONG_CASES, ids=str)
def test_twenty_runs_give_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    """Also while another stream keeps the device busy."""
    other, work = torch.cuda.Stream(), torch.rand(512, 512, device="cuda")

    def disturb(i: int) -> None:
        with torch.cuda.stream(other):
            for _ in range(i % 4):
                work @ work

    checks.same_bits_every_time(DEVICE, case, dtype, disturb)


@pytest.mark.parametrize("case", checks.LONG_CASES, ids=str)
def test_graph_replay_sees_new_inputs(case: Case) -> None:
    """Nothing in forward or backward waits for the device or allocates outside PyTorch's allocator."""
    _replay_sees_new_inputs(case)


def _replay_sees_new_inputs(case: Case) -> None:
    inputs = [tensor.requires_grad_() for tensor in DEVICE.inputs(case, torch.bfloat16)]

    def step():
        out = case.run(inputs)
        return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor, fresh in zip(inputs, case.inputs(torch.bfloat16, seed=1), strict=True):
            tensor.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    checks.same_bits([tensor.detach().clone() for tensor in captured], [tensor.detach() for tensor in step()])


@pytest.mark.parametrize("case", checks.LONG_CASES, ids=str)
def test_two_streams_at_once(case: Case) -> None:
    inputs = DEVICE.inputs(case, torch.float16)
    expected = DEVICE.run(case, inputs)
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(2)], []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(DEVICE.run(case, inputs))
    torch.cuda.synchronize()
    for result in results:
        checks.same_bits(result, expected)


@dtypes
@pytest.mark.parametrize("case", in_turn(CUDA_CASES), ids=str)
def test_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    if not agrees(case, dtype, ops, "cuda"):
        pytest.skip("plain PyTorch overflows in this dtype")


@dtypes
@pytest.mark.parametrize("kind", checks.KINDS[:2], ids=str)
def test_no_overflow_over_many_tokens(dtype: torch.dtype, kind: dict) -> None:
    checks.no_overflow_over_many_tokens(DEVICE, dtype, kind)


@pytest.mark.parametrize("check", WKV_CHECKS, ids=lambda check: check.__name__)
def test_hard_wkv(check) -> None:
    check(DEVICE)


@pytest.mark.parametrize("case", SMALL_CUDA_CASES, ids=str)
def test_compile_without_graph_breaks(case: Case) -> None:
    inputs = [tensor.requires_grad_() for tensor in DEVICE.inputs(case, torch.float32)]

    def function(*tensors):
        return case.run([tensor * 1.5 for tensor in tensors[:2]] + list(tensors[2:])).sin()

    torch._dynamo.reset()
    expected, got = function(*inputs), torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(got, expected)
    wanted = torch.autograd.grad(expected.sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), inputs), wanted)


# what PyTorch's kernels take: head dims in multiples of 8, of cuDNN tokens in multiples of 128
SDPA_CASES = (
    Case("softmax_attention", (2, 128, 128, 2, 64, 64)),
    Case("softmax_attention", (1, 256, 384, 3, 32, 32), (("scale", 0.7),)),
    Case("softmax_attention", (1, 384, 384, 2, 128, 128), (("causal", True),)),
)
BY_BACKEND = [
    (backend, dtype)
    for backend in ("flash", "cudnn", "efficient")
    for dtype in DTYPES
    if backend == "efficient" or dtype != torch.float32
]
by_backend = pytest.mark.parametrize(("backend", "dtype"), BY_BACKEND, ids=str)


@by_backend
@pytest.mark.parametrize("case", SDPA_CASES, ids=str)
def test_softmax_by_backends_of_pytorch(case: Case, backend: str, dtype: torch.dtype) -> None:
    with ops.softmax_backend(backend):
        assert agrees(case, dtype, ops, "cuda")


@pytest.mark.parametrize("backend", ["flash", "efficient"])
def test_softmax_by_backends_of_pytorch_with_odd_tokens(backend: str) -> None:
    with ops.softmax_backend(backend):
        assert agrees(Case("softmax_attention", (2, 130, 49, 3, 40, 40)), torch.bfloat16, ops, "cuda")
        assert agrees(Case("softmax_attention", (1, 1, 33, 2, 64, 64)), torch.bfloat16, ops, "cuda")


@by_backend
def test_softmax_by_backends_leaves_what_the_backward_needs(backend: str, dtype: torch.dtype) -> None:
    q, k, v = torch.randn(2, 128, 3, 2, 64).to("cuda", dtype).unbind(2)
    expected = torch.ops.sola.softmax_attention(q, k, v, 0.125, False)
    with ops.softmax_backend(backend):
        found = torch.ops.sola.softmax_attention(q, k, v, 0.125, False)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.shape, mine.stride(), mine.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-3)


@by_backend
@pytest.mark.parametrize("case", SDPA_CASES, ids=str)
def test_softmax_by_backends_gives_the_same_bits(case: Case, backend: str, dtype: torch.dtype) -> None:
    with ops.softmax_backend(backend):
        checks.same_bits_every_time(DEVICE, case, dtype, lambda _: None)


@pytest.mark.parametrize("backend", ["flash", "cudnn", "efficient"])
@pytest.mark.parametrize("case", SDPA_CASES, ids=str)
def test_softmax_by_backends_in_a_graph(case: Case, backend: str) -> None:
    with ops.softmax_backend(backend):
        _replay_sees_new_inputs(case)


def test_softmax_backend_holds_for_functions_compiled_before() -> None:
    q, k, v = torch.randn(1, 128, 3, 2, 64).to("cuda", torch.bfloat16).unbind(2)
    torch._dynamo.reset()
    compiled = torch.compile(ops.softmax_attention, fullgraph=True, backend="aot_eager")
    for backend in ("own", "flash", "efficient"):
        with ops.softmax_backend(backend):
            assert torch.equal(compiled(q, k, v), ops.softmax_attention(q, k, v))
    with ops.softmax_backend("flash"), pytest.raises(ValueError, match="flash can't take this call: it takes bfloat16"):
        compiled(q.float(), k.float(), v.float())


@contextmanager
def _room() -> Iterator[None]:
    """For huge tensors; skips where the device, or what other processes leave of it, is too small."""
    free = torch.cuda.mem_get_info()[0]
    if free < MOST_BYTES:
        pytest.skip(f"needs {MOST_BYTES >> 30} GiB of memory, {free >> 30} are free")
    try:
        yield
    except torch.OutOfMemoryError as error:
        pytest.skip(f"other processes took the memory: {str(error).splitlines()[0]}")
    finally:
        torch.cuda.empty_cache()


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "token"])
@pytest.mark.parametrize("attention", ["softmax", "linear", "causal", "wkv", "shift_mix", "layer_norm", "channel_mix"])
def test_offsets_beyond_int32(attention: str, axis: int) -> None:
    with _room():
        checks.offsets_beyond_int32(DEVICE, torch.ops.sola, attention, axis)


@pytest.mark.parametrize("attention", ["softmax", "linear", "causal", "wkv", "shift_mix", "layer_norm", "channel_mix"])
def test_results_beyond_int32(attention: str) -> None:
    with _room():
        checks.results_beyond_int32(DEVICE, attention)
