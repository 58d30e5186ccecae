"""The emulator on which the CUDA kernels are checked: its products, and the mistakes that it must notice."""

import emulated
import pytest
import torch


@pytest.fixture(scope="module")
def library():
    return emulated.library()


_BARRIERLESS = 1
# of tests/emulator/selftest_warpgroup.cpp
_NO_ARRIVAL, _NO_PUBLICATION, _NO_WAIT, _OVERWRITTEN = 1, 2, 3, 4


@pytest.mark.parametrize("layout", range(4), ids=["row col", "row row", "col col", "col row"])
@pytest.mark.parametrize(
    ("kind", "dtype"), list(enumerate([torch.bfloat16, torch.float16, torch.float32, torch.float32]))
)
def test_products_of_tensor_cores(library, kind: int, dtype: torch.dtype, layout: int) -> None:
    """The fragments of ``mma`` and ``ldmatrix`` against a plain product; operands exact in their type."""
    generator = torch.Generator().manual_seed(layout)
    a, b = (torch.randn(16, 16, generator=generator).to(dtype).float() for _ in range(2))
    expected = (a.double() @ b.double()).float()
    torch.testing.assert_close(library.product(kind, layout, a, b), expected, rtol=1e-5, atol=1e-5)


def test_a_missing_barrier_shows(library) -> None:
    """Some order of the warps reads what isn't written yet; with the barrier none does."""
    reversed_numbers = torch.arange(63.0, -1, -1)
    wrong = 0
    for seed in range(20):
        library.set_seed(seed)
        assert torch.equal(library.mistake(0), reversed_numbers)
        wrong += not torch.equal(library.mistake(_BARRIERLESS), reversed_numbers)
    assert wrong > 0


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (2, "a barrier was not reached by all threads of the block"),
        (3, "a warp primitive was not reached by all lanes"),
        (4, "the lanes of a warp are at different primitives"),
    ],
)
def test_divergence_is_an_error(library, kind: int, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        library.mistake(kind)


def test_what_nobody_waited_for_or_wrote_is_nan(library) -> None:
    assert library.mistake(5).isnan().all()
    assert library.mistake(6).isnan().all()


def _chain(dtype: torch.dtype, columns: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Operands whose sums are exact in either type, and (a·bᵀ)·c."""
    generator = torch.Generator().manual_seed(columns)
    a, b, c = (torch.randint(-1, 2, (64, columns), generator=generator).to(dtype) for _ in range(3))
    return [a, b, c], a.float() @ b.float().T @ c.float()


@pytest.mark.parametrize("columns", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_of_warpgroups(library, dtype: torch.dtype, columns: int) -> None:
    """Swizzled tiles, descriptors along and across, operands in registers."""
    operands, expected = _chain(dtype, columns)
    for seed in range(3):
        library.set_seed(seed)
        assert torch.equal(library.chain(*operands, 0), expected)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [(_NO_ARRIVAL, "a product without wgmma.fence before"), (_NO_PUBLICATION, "no thread has published")],
)
def test_products_that_nothing_orders_are_errors(library, mistake: int, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        library.chain(*_chain(torch.bfloat16, 64)[0], mistake)


@pytest.mark.parametrize("mistake", [_NO_WAIT, _OVERWRITTEN])
def test_products_happen_any_time_until_they_are_waited_for(library, mistake: int) -> None:
    operands, expected = _chain(torch.bfloat16, 64)
    wrong = 0
    for seed in range(20):
        library.set_seed(seed)
        wrong += not torch.equal(library.chain(*operands, mistake), expected)
    assert wrong > 0


def test_kernels_do_run_there(library) -> None:
    before = library.blocks_run()
    emulated.softmax_attention(*(torch.randn(1, 130, 2, 8) for _ in range(3)))
    assert library.blocks_run() - before == 2 * 3
