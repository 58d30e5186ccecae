"""Kernels for compute capability 9.0 alone, by the asynchronous products of warpgroups, in the emulator."""

from collections.abc import Iterator

import device_checks as checks
import emulated
import pytest
import torch
from against_reference import agrees
from cases import Case, warpgroup_cases

DEVICE = checks.Device("cpu", emulated, tokens=4096)
_ORDINARY, _HOPPER = 80, 90
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def library() -> Iterator:
    torch.set_num_threads(1)
    library = emulated.library()
    library.set_capability(_HOPPER)
    yield library
    library.set_capability(_ORDINARY)


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
    checks.nan_and_inf(DEVICE, case, index, value, torch.bfloat16, rtol=2e-2)


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
