"""Kernels for compute capability 9.0, by asynchronous products of warpgroups and by clusters of blocks, in the emulator."""

from collections.abc import Iterator

import channel_mix_checks as mix_checks
import device_checks as checks
import emulated
import pytest
import torch
from against_reference import agrees
from cases import CUDA_CASES, SMALL_CUDA_CASES, Case, mix_kernel_cases, warpgroup_cases

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICE = checks.Device("cpu", emulated, tokens=4096)
# compute capability, and bytes of shared memory that a block may have
_ORDINARY, _HOPPER = (80, 163 << 10), (90, 227 << 10)
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def library() -> Iterator:
    library = emulated.library()
    _become(library, *_HOPPER)
    yield library
    _become(library, *_ORDINARY)
    library.switch_cuda_features_off([])


def _become(library, capability: int, shared_bytes: int) -> None:
    library.set_capability(capability)
    library.set_most_shared(shared_bytes)


def _blocks(library, case: Case, dtype: torch.dtype, *, odd: bool = False) -> int:
    """How many blocks a forward pass takes, by which its kernel shows; ``odd``: rows begin between 16-byte vectors."""
    inputs = case.inputs(dtype)
    if odd:
        inputs = [torch.cat([tensor, tensor[..., :1]], -1)[..., :-1] for tensor in inputs]
    before = library.blocks_run()
    case.call(emulated, inputs)
    return library.blocks_run() - before


@HALF
@pytest.mark.parametrize("case", list(warpgroup_cases(1, 1)), ids=str)
def test_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    assert agrees(case, dtype, emulated)


@HALF
@pytest.mark.parametrize("case", list(mix_kernel_cases()), ids=str)
def test_channel_mix(library, case: Case, dtype: torch.dtype) -> None:
    batch, tokens, channels, _hidden = case.sizes
    if batch * tokens >= 64:
        rows = 192 if 64 < channels <= 128 else 128
        assert _blocks(library, case, dtype) == -(-batch * tokens // rows)
    assert agrees(case, dtype, emulated)


@HALF
def test_layouts_of_channel_mix(dtype: torch.dtype) -> None:
    mix_checks.layouts(DEVICE, dtype)


@HALF
@pytest.mark.parametrize("value", checks.VALUES)
def test_nan_in_channel_mix_stays_in_its_token(value: float, dtype: torch.dtype) -> None:
    mix_checks.nan_stays_in_its_token(DEVICE, value, dtype)


@HALF
def test_infinity_that_turns_units_off(dtype: torch.dtype) -> None:
    mix_checks.infinity_that_turns_units_off(DEVICE, dtype)


def test_several_heads_and_batches() -> None:
    assert agrees(Case("softmax_attention", (2, 130, 140, 3, 32, 64)), torch.bfloat16, emulated)


@pytest.mark.parametrize(
    ("sizes", "dtype", "odd", "blocks"),
    [
        ((1, 200, 200, 1, 64, 64), torch.bfloat16, False, 2),  # 192 queries to a block
        ((1, 200, 200, 1, 64, 128), torch.float16, False, 2),  # 128
        ((1, 200, 200, 1, 64, 64), torch.bfloat16, True, 4),  # ordinary: 64
        ((1, 200, 200, 1, 60, 64), torch.bfloat16, False, 4),
        ((1, 200, 200, 1, 64, 136), torch.bfloat16, False, 4),
        ((1, 200, 200, 1, 64, 64), torch.float32, False, 4),
        ((1, 100, 200, 1, 64, 64), torch.bfloat16, False, 2),  # too few queries: 64 to a block
    ],
    ids=str,
)
def test_warpgroups_take_what_suits_them(library, sizes, dtype: torch.dtype, odd: bool, blocks: int) -> None:
    assert _blocks(library, Case("softmax_attention", sizes), dtype, odd=odd) == blocks
    library.set_capability(100)  # has no such instructions either
    if blocks == 2 and sizes[1] == 200:
        assert _blocks(library, Case("softmax_attention", sizes), dtype, odd=odd) == 4


@pytest.mark.parametrize(
    ("feature", "case", "blocks"),
    [
        ("wgmma", Case("softmax_attention", (1, 200, 200, 1, 64, 64)), 4),
        # ranges, sums of them, ranges again
        ("clusters", Case("linear_attention", (1, 600, 600, 1, 32, 32)), 5 + (32 * 32 + 32) // 32 + 10),
        ("shared", Case("softmax_attention", (1, 64, 64, 1, 256, 256)), 2),
    ],
    ids=str,
)
def test_a_feature_that_is_off_is_not_used(library, feature: str, case: Case, blocks: int) -> None:
    dtype = torch.float32 if feature == "shared" else torch.bfloat16
    with_it = _blocks(library, case, dtype)
    library.switch_cuda_features_off([feature])
    assert with_it < _blocks(library, case, dtype) == blocks
    assert agrees(case, dtype, emulated)


@HALF
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_slices_of_one_projection(dtype: torch.dtype, dim: int) -> None:
    case = Case("softmax_attention", (2, 140, 140, 2, dim, dim))
    qkv = torch.randn(2, 140, 3, 2, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    views = list(qkv.unbind(2))
    checks.same_bits(DEVICE.run(case, views), DEVICE.run(case, [view.contiguous() for view in views]))


@HALF
def test_strided_inputs(dtype: torch.dtype) -> None:
    checks.strided_inputs(DEVICE, Case("softmax_attention", (2, 130, 140, 1, 40, 32)), dtype)


def test_expanded_gradients() -> None:
    case = Case("softmax_attention", (1, 130, 140, 1, 64, 32))
    inputs = case.inputs(torch.bfloat16)
    row = torch.randn(32, generator=torch.Generator().manual_seed(1)).bfloat16().expand(1, 130, 1, 32)
    checks.same_bits(DEVICE.run(case, inputs, row), DEVICE.run(case, inputs, row.contiguous()))


@pytest.mark.parametrize("value", checks.VALUES)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_nan_and_inf(causal: bool, index: int, value: float) -> None:
    case = Case("softmax_attention", (1, 140, 140, 1, 32, 24), (("causal", causal),))
    checks.nan_and_inf(DEVICE, case, index, value, torch.bfloat16)


@pytest.mark.parametrize("causal", [False, True])
def test_keys_of_minus_infinity_have_gradients(causal: bool) -> None:
    """A weight of 0 from every query, also from those that fill the last block up."""
    case = Case("softmax_attention", (1, 140, 140, 1, 32, 32), (("causal", causal),))
    q, k, v = case.inputs(torch.bfloat16)
    q[..., 0] = q[..., 0].abs() + 0.1
    k[0, 5, 0, 0] = -torch.inf
    _out, _grad_q, grad_k, grad_v = DEVICE.run(case, [q, k, v])
    assert grad_k.isfinite().all()
    assert grad_v.isfinite().all()
    assert not grad_v[0, 5].any()


@HALF
def test_large_scores(dtype: torch.dtype) -> None:
    case = Case("softmax_attention", (1, 140, 140, 1, 16, 16), (("scale", 500.0),))
    inputs = case.inputs(dtype)
    out, expected = case.call(emulated, inputs), case.refer([tensor.double() for tensor in inputs])
    assert out.isfinite().all()
    # scores near 10⁴ carry roundings near 10⁻³ into the exponent
    torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dims", [(32, 32), (64, 64), (128, 128)], ids=str)
def test_same_bits_in_any_order_of_threads(library, dims: tuple[int, int], causal: bool) -> None:
    case = Case("softmax_attention", (1, 150, 270, 1, *dims), (("causal", causal),))
    checks.same_bits_every_time(DEVICE, case, torch.bfloat16, library.set_seed)


# ---- linear attention with one state, by clusters

_DTYPES = checks.HALF_AND_FLOAT
_NARROW = 64


def _is_for_clusters(case: Case) -> bool:
    options = dict(case.options)
    one_state = case.op == "linear_attention" and case.decay is None and not options.get("causal")
    return one_state and max(case.sizes[4:]) <= _NARROW


LINEAR_CASES = [case for case in CUDA_CASES if _is_for_clusters(case)]
SMALL_LINEAR_CASES = [case for case in SMALL_CUDA_CASES if _is_for_clusters(case)]


@pytest.mark.parametrize(
    ("case", "dtype"), [(case, dtype) for i, case in enumerate(LINEAR_CASES) for dtype in (_DTYPES[i % 3], _DTYPES[1])]
)
def test_linear_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    if not agrees(case, dtype, emulated):
        pytest.skip("plain PyTorch overflows in this dtype")


# more and fewer keys than queries; ranges of which some, or of one side all, have no tokens
@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [(1000, 70), (70, 1000), (449, 449), (0, 300), (300, 0)], ids=str)
def test_clusters_of_eight(library, tokens: tuple[int, int], dtype: torch.dtype) -> None:
    case = Case("linear_attention", (1, *tokens, 1, 40, 24))
    before = library.blocks_run()
    case.call(emulated, case.inputs(dtype))
    assert library.blocks_run() - before == (4 if max(tokens) < 449 else 8)
    assert agrees(case, dtype, emulated)


def test_clusters_are_for_heads_that_fill_a_device_or_few_tokens(library) -> None:
    """One kernel where eight blocks at once fill the emulator's device, which has room for six in float32; or else three."""
    for heads, tokens, blocks in ((1, 4096, 8), (8, 4200, 8), (5, 100, 10), (16, 70, 16)):
        inputs = Case("linear_attention", (1, tokens, tokens, heads, 32, 32)).inputs(torch.bfloat16)
        before = library.blocks_run()
        emulated.linear_attention(*inputs)
        assert library.blocks_run() - before == blocks
    inputs = Case("linear_attention", (1, 4200, 4200, 1, 32, 32)).inputs(torch.float32)
    before = library.blocks_run()
    emulated.linear_attention(*inputs)
    assert library.blocks_run() - before > (32 * 32 + 32) // 32


@pytest.mark.parametrize("case", SMALL_LINEAR_CASES, ids=str)
def test_linear_layouts(case: Case) -> None:
    for dtype in _DTYPES:
        checks.strided_inputs(DEVICE, case, dtype)
    checks.expanded_gradients(DEVICE, case)


@pytest.mark.parametrize("dim", [40, 33])
def test_linear_slices_of_one_projection(dim: int) -> None:
    for dtype in _DTYPES:
        checks.slices_of_one_projection(DEVICE, dtype, dim)


@pytest.mark.parametrize("sizes", checks.EMPTY_SIZES, ids=str)
def test_linear_empty(sizes: tuple[int, ...]) -> None:
    checks.empty_inputs(DEVICE, sizes, "linear_attention", torch.bfloat16)


@pytest.mark.parametrize("value", checks.VALUES)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_linear_nan_and_inf(index: int, value: float) -> None:
    for case in SMALL_LINEAR_CASES:
        checks.nan_and_inf(DEVICE, case, index, value)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 0.0), (torch.bfloat16, 1e-6), (torch.float16, 0.0)])
def test_linear_zero_normaliser(dtype: torch.dtype, eps: float) -> None:
    checks.zero_normaliser(DEVICE, dtype, {}, eps)


def test_linear_no_overflow_over_many_tokens() -> None:
    checks.no_overflow_over_many_tokens(DEVICE, torch.float16, {})


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_linear_same_bits_in_any_order_of_threads(library, dtype: torch.dtype) -> None:
    checks.same_bits_every_time(DEVICE, Case("linear_attention", (1, 900, 800, 1, 24, 40)), dtype, library.set_seed)


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "token"])
def test_linear_offsets_beyond_int32(library, axis: int) -> None:
    checks.offsets_beyond_int32(DEVICE, library, "linear", axis)
