"""The CUDA kernels, run thread by thread on the CPU: every case against float64, layouts, edges; and the emulator itself."""

from collections.abc import Iterator

import channel_mix_checks as mix_checks
import device_checks as checks
import emulated
import pytest
import torch
from against_reference import agrees
from cases import CUDA_CASES, SMALL_CUDA_CASES, Case, channel_mix_cases, mix_kernel_cases, wide_softmax_cases
from wkv_checks import WKV_CHECKS

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = checks.HALF_AND_FLOAT
DEVICE = checks.Device("cpu", emulated, tokens=4096)


@pytest.fixture(scope="module", autouse=True)
def library():
    return emulated.library()


# one dtype each: neighbours in the list differ in little else
@pytest.mark.parametrize(("case", "dtype"), [(case, DTYPES[i % 3]) for i, case in enumerate(CUDA_CASES)], ids=str)
def test_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    if not agrees(case, dtype, emulated):
        pytest.skip("plain PyTorch overflows in this dtype")


def _left_out() -> Iterator[tuple[Case, torch.dtype]]:
    """Kernels of their own that a list with one dtype each leaves out."""
    for dtype in DTYPES[1:]:
        yield Case("softmax_attention", (1, 256, 256, 2, 32, 32)), dtype
        yield Case("softmax_attention", (1, 70, 70, 1, 128, 128)), dtype
        yield Case("linear_attention", (1, 70, 70, 1, 64, 64), decay=0.9), dtype
        for sizes in ((60, 200), (200, 60), (100, 200), (200, 100)):
            yield Case("linear_attention", (1, 70, 70, 1, *sizes)), dtype
    for dtype in DTYPES:
        for vectors in (1, 2, 4):
            yield Case("layer_norm", (1, 9, vectors * 16 // dtype.itemsize)), dtype


@pytest.mark.parametrize(("case", "dtype"), list(_left_out()), ids=str)
def test_kernels_of_every_dtype(case: Case, dtype: torch.dtype) -> None:
    assert agrees(case, dtype, emulated)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wkv_that_nobody_learns_from(dtype: torch.dtype) -> None:
    """Nothing is kept for a backward, and outputs are the same bits."""
    case = Case("wkv", (2, 300, 40))
    inputs = DEVICE.inputs(case, dtype)
    assert torch.equal(case.call(emulated, inputs), DEVICE.run(case, inputs)[0])


@pytest.fixture
def little_shared_memory(library) -> Iterator[None]:
    """A device of compute capability 8.6: 99 KiB for a block."""
    library.set_most_shared(99 << 10)
    yield
    library.set_most_shared(163 << 10)


@pytest.mark.usefixtures("little_shared_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", list(wide_softmax_cases()), ids=str)
def test_softmax_in_little_shared_memory(case: Case, dtype: torch.dtype) -> None:
    assert agrees(case, dtype, emulated)


@pytest.mark.usefixtures("little_shared_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [96, 128, 192, 256])
def test_wide_heads_in_little_shared_memory(dim: int, dtype: torch.dtype) -> None:
    for decay in (None, 0.9):
        assert agrees(Case("linear_attention", (1, 70, 70, 1, dim, dim), decay=decay), dtype, emulated)


@pytest.mark.parametrize(("case", "dtype"), [(case, DTYPES[i % 3]) for i, case in enumerate(SMALL_CUDA_CASES)], ids=str)
def test_strided_inputs(case: Case, dtype: torch.dtype) -> None:
    checks.strided_inputs(DEVICE, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_norms_with_wide_parameters(dtype: torch.dtype) -> None:
    checks.wide_parameters(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", checks.VALUES)
def test_nan_in_a_norm_stays_in_its_token(value: float, dtype: torch.dtype) -> None:
    checks.nan_stays_in_its_token(DEVICE, value, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channel_mix(dtype: torch.dtype) -> None:
    """Sizes of all kinds: most are PyTorch's products with our steps between."""
    for case in channel_mix_cases():
        agrees(case, dtype, emulated)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", list(mix_kernel_cases()), ids=str)
def test_channel_mix_by_one_kernel(library, case: Case, dtype: torch.dtype) -> None:
    before = library.blocks_run()
    case.call(emulated, case.inputs(dtype))
    batch, tokens, channels, _hidden = case.sizes
    assert library.blocks_run() - before == -(-batch * tokens // (128 if channels <= 128 else 64))
    assert agrees(case, dtype, emulated)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_of_channel_mix(dtype: torch.dtype) -> None:
    mix_checks.layouts(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", checks.VALUES)
def test_nan_in_channel_mix_stays_in_its_token(value: float, dtype: torch.dtype) -> None:
    mix_checks.nan_stays_in_its_token(DEVICE, value, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinity_that_turns_units_off(dtype: torch.dtype) -> None:
    mix_checks.infinity_that_turns_units_off(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_under_autocast(dtype: torch.dtype) -> None:
    mix_checks.backward_under_autocast(DEVICE, dtype)


def test_overflow_at_a_unit_that_is_off() -> None:
    mix_checks.overflow_at_a_unit_that_is_off(DEVICE)


# so many heads that a block has several tiles of one, the last of two tokens
@pytest.mark.parametrize(("dtype", "dims"), [(torch.float32, (5, 8)), (torch.bfloat16, (40, 33))], ids=str)
def test_blocks_walk_over_several_tiles(dtype: torch.dtype, dims: tuple[int, int]) -> None:
    assert agrees(Case("linear_attention", (1, 130, 130, 12, *dims)), dtype, emulated)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [40, 33])
def test_slices_of_one_projection(dtype: torch.dtype, dim: int) -> None:
    checks.slices_of_one_projection(DEVICE, dtype, dim)


@pytest.mark.parametrize("case", SMALL_CUDA_CASES, ids=str)
def test_expanded_gradients(case: Case) -> None:
    checks.expanded_gradients(DEVICE, case)


@pytest.mark.parametrize("sizes", checks.EMPTY_SIZES, ids=str)
@pytest.mark.parametrize("op", ["softmax_attention", "linear_attention"])
def test_empty_attention(op: str, sizes: tuple[int, ...]) -> None:
    checks.empty_inputs(DEVICE, sizes, op, torch.bfloat16)


def test_empty_chunks_and_scans() -> None:
    checks.empty_chunks_and_scans(DEVICE)


@pytest.mark.parametrize("causal", [False, True])
def test_decays_that_nobody_learns(library, causal: bool) -> None:
    checks.decays_that_nobody_learns(DEVICE, library, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", checks.VALUES)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("case", checks.FEW_TOKENS, ids=str)
def test_nan_and_inf(case: Case, index: int, value: float, dtype: torch.dtype) -> None:
    checks.nan_and_inf(DEVICE, case, index, value, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", checks.VALUES)
def test_nan_in_shift_mix_reaches_neighbours(value: float, dtype: torch.dtype) -> None:
    checks.nan_in_shift_mix_reaches_neighbours(DEVICE, value, dtype)


@pytest.mark.parametrize("value", checks.VALUES[:2])
@pytest.mark.parametrize("which", ["k", "v"])
def test_nan_in_wkv_stays_in_its_channel(which: str, value: float) -> None:
    checks.nan_in_wkv_stays_in_its_channel(DEVICE, which, value)


@pytest.mark.parametrize("kind", checks.KINDS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.float32, 0.0), (torch.bfloat16, 1e-6), (torch.float16, 0.0)], ids=str
)
def test_zero_normaliser(dtype: torch.dtype, eps: float, kind: dict) -> None:
    checks.zero_normaliser(DEVICE, dtype, kind, eps)


@pytest.mark.parametrize("kind", checks.KINDS[:2], ids=str)
def test_no_overflow_over_many_tokens(kind: dict) -> None:
    checks.no_overflow_over_many_tokens(DEVICE, torch.float16, kind)


@pytest.mark.parametrize("check", WKV_CHECKS, ids=lambda check: check.__name__)
def test_hard_wkv(check) -> None:
    check(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(dtype: torch.dtype) -> None:
    checks.large_scores(DEVICE, dtype)


@pytest.mark.parametrize(
    ("case", "dtype"), [(case, DTYPES[i % 3]) for i, case in enumerate(checks.LONG_CASES)], ids=str
)
def test_same_bits_in_any_order_of_threads(library, case: Case, dtype: torch.dtype) -> None:
    """Warps, lanes and blocks in another order: a missing barrier, or a sum in order of arrival, would show."""
    checks.same_bits_every_time(DEVICE, case, dtype, library.set_seed)


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "token"])
@pytest.mark.parametrize("attention", ["softmax", "linear", "causal", "wkv", "shift_mix", "layer_norm", "channel_mix"])
def test_offsets_beyond_int32(library, attention: str, axis: int) -> None:
    checks.offsets_beyond_int32(DEVICE, library, attention, axis)


def test_float64_is_refused_by_name() -> None:
    q = torch.randn(1, 4, 1, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="q must be one of float32, bfloat16, float16 on cuda, got float64"):
        emulated.softmax_attention(q, q, q)


def test_bad_arguments_are_named_as_on_the_cpu() -> None:
    q, v = torch.randn(1, 4, 1, 8), torch.randn(1, 4, 1, 300)
    with pytest.raises(ValueError, match="v must have a head dim of 1 to 256, got 300"):
        emulated.linear_attention(q, q, v)
    with pytest.raises(ValueError, match="decay must be"):
        emulated.linear_attention(q, q, q, decay=torch.ones(3))
    with pytest.raises(ValueError, match="v must have the shape of k"):
        emulated.wkv(q[0], q[0, :2], torch.ones(8), torch.ones(8))


# a bad decay can't be refused without waiting for the device
@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_a_decay_out_of_range_gives_nan(decay: float) -> None:
    q = torch.randn(1, 70, 1, 8)
    assert emulated.linear_attention(q, q, q, decay=torch.tensor([decay]))[0, 1:].isnan().any()
