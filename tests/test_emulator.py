"""The emulator on which the CUDA kernels are checked: its products, and the mistakes that it must notice."""

import fcntl
import subprocess
import sys

import emulated
import pytest
import torch
from emulator import build


@pytest.fixture
def library():
    """In the order of threads that it begins with, whatever ran there before."""
    emulated.library().set_seed(0)
    return emulated.library()


_BARRIERLESS = 1
# of tests/emulator/selftest_warpgroup.cpp
_NO_ARRIVAL, _NO_PUBLICATION, _NO_WAIT, _OVERWRITTEN = 1, 2, 3, 4
_BETWEEN_PATTERNS, _BASE_OFFSET, _NARROW_STRIDE, _PARTED, _LEFT_OUT, _WRITTEN_LATE, _STORED, _UNFINISHED = range(5, 13)


@pytest.mark.parametrize("layout", range(4), ids=["row col", "row row", "col col", "col row"])
@pytest.mark.parametrize(
    ("kind", "dtype"), list(enumerate([torch.bfloat16, torch.float16, torch.float16, torch.float32]))
)
def test_products_of_tensor_cores(library, kind: int, dtype: torch.dtype, layout: int) -> None:
    """The fragments of ``mma`` and ``ldmatrix`` against a plain product; operands exact in their type, TF32's float16."""
    generator = torch.Generator().manual_seed(layout)
    a, b = (torch.randn(16, 16, generator=generator).to(dtype).float() for _ in range(2))
    expected = (a.double() @ b.double()).float()
    torch.testing.assert_close(library.product(kind, layout, a, b), expected, rtol=1e-5, atol=1e-5)


def test_quotients(library) -> None:
    """What stands for divisions of indices: around multiples, powers of two and the last number that it is used for."""
    powers = [2**e + d for e in range(1, 40) for d in (-1, 0, 1)]
    for by in (1, 3, 7, 12, 96, 641, 65_537, 2**31 - 1, *powers):
        multiples = [by * count + d for count in (1, 2, 1000, 1 + 2**31 // by) for d in (-1, 0, 1)]
        for n in (0, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 2**45 + 12_345, *powers, *multiples):
            assert library.quotient(n, by) == n // by, (n, by)


@pytest.mark.skipif(build.RACES, reason="refused where every access is watched")
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
        (7, "a shuffle asks for a lane outside the warp"),
        (8, "a load or store isn't aligned to its type"),
        (12, "ldmatrix: a row lies outside the block's shared memory"),
        (13, "cp.async: a copy goes outside the block's shared memory"),
    ],
)
def test_what_a_device_would_stop_at_is_an_error(library, kind: int, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        library.mistake(kind)


def test_what_nobody_waited_for_or_wrote_is_nan(library) -> None:
    assert library.mistake(6).isnan().all()
    if not build.RACES:  # copies arrive at once or late
        assert library.mistake(5).isnan().any()


_MOST_BLOCKS, _UNASKED_SHARED, _MOST_SHARED = 2**31 - 1, 48 << 10, 163 << 10


@pytest.mark.parametrize(
    ("blocks", "threads", "shared", "sentence"),
    [
        (_MOST_BLOCKS + 1, 32, 0, "more work than a grid of 2147483647 blocks"),
        (1, 1056, 0, "invalid configuration"),
        (1, 40, 0, "invalid value"),
        (1, 32, _MOST_SHARED + 16, "more shared memory than this device has"),
    ],
)
def test_launches_beyond_the_limits_of_a_device_are_refused(library, blocks, threads, shared, sentence) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        library.launch(blocks, threads, shared)
    # nobody else is blamed
    library.launch(1, 32, _UNASKED_SHARED)
    library.launch(1, 1024, _MOST_SHARED)
    library.launch(0, 32, 0)


def test_a_device_that_is_too_old_is_told_what_runs_there(library) -> None:
    q = torch.randn(1, 3, 1, 128)
    library.set_capability(75)
    try:
        # one that starts at once, and one that asks for shared memory first
        for op in (emulated.linear_attention, emulated.softmax_attention):
            with pytest.raises(
                RuntimeError, match=r"compute capability 8.0 and later. Under sola_profile.pytorch_oper"
            ):
                op(q, q, q)
    finally:
        library.set_capability(80)


_RACES = {
    9: "thread .* reads what another wrote .* of shared memory",
    10: "race: thread .* of shared memory",
    11: "thread 0 writes what another wrote .* of global memory",
}


@pytest.mark.skipif(not build.RACES, reason="the emulator watches accesses where it is built with -DSOLA_RACES")
@pytest.mark.parametrize("kind", [_BARRIERLESS, 5, *_RACES])
def test_races_are_found(library, kind: int) -> None:
    library.mistake(0)
    with pytest.raises(RuntimeError, match=_RACES.get(kind, "race")):
        library.mistake(kind)


def test_an_early_kernel_waits(library) -> None:
    """Or it reads what isn't there, and who waits for it knows nothing of those in front."""
    assert torch.equal(library.hand_over(True), 2 * torch.arange(64.0))
    sentence = "reads what another wrote" if build.RACES else "has ended without waiting for those in front"
    with pytest.raises(RuntimeError, match=sentence):
        library.hand_over(False)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (1, "the memory of another that may not have begun"),
        (2, "the memory of another that may have ended"),
        (3, "an address lies outside the block's shared memory"),
    ],
)
def test_blocks_of_a_cluster_are_there_between_barriers(library, mistake: int, sentence: str) -> None:
    assert library.cluster(0).tolist() == [3, 0, 1, 2]
    with pytest.raises(RuntimeError, match=sentence):
        library.cluster(mistake)


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
    [
        (_NO_ARRIVAL, "a product without wgmma.fence before"),
        (_WRITTEN_LATE, "registers of a product have been written since"),
        (_NO_PUBLICATION, "has been written and not published"),
        (_UNFINISHED, "a warp has ended with products under way"),
        (_PARTED, "the warps of a warpgroup ask for different products"),
        (_LEFT_OUT, "not reached by all warps of its warpgroup"),
    ],
)
def test_products_that_nothing_orders_are_errors(library, mistake: int, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        library.chain(*_chain(torch.bfloat16, 64)[0], mistake)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (_BETWEEN_PATTERNS, "does not begin where its pattern does"),
        (_BASE_OFFSET, "a base offset, or bits without a meaning"),
        (_NARROW_STRIDE, "eight rows and the next lie in different patterns"),
    ],
)
def test_descriptors_that_a_device_would_misread_are_errors(library, mistake: int, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        library.chain(*_chain(torch.bfloat16, 64)[0], mistake)


@pytest.mark.skipif(not build.RACES, reason="the emulator watches accesses where it is built with -DSOLA_RACES")
def test_ordinary_stores_are_published_too(library) -> None:
    with pytest.raises(RuntimeError, match="has been written and not published"):
        library.chain(*_chain(torch.bfloat16, 64)[0], _STORED)


@pytest.mark.parametrize("mistake", [_NO_WAIT, _OVERWRITTEN])
def test_products_happen_any_time_until_they_are_waited_for(library, mistake: int) -> None:
    operands, expected = _chain(torch.bfloat16, 64)
    wrong = 0
    for seed in range(20):
        library.set_seed(seed)
        wrong += not torch.equal(library.chain(*operands, mistake), expected)
    assert wrong > 0


def test_a_second_build_waits_for_the_first(library) -> None:
    """Processes of pytest-xdist begin with their first tests at the same time."""
    with (build.FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen([sys.executable, build.__file__], stdout=subprocess.PIPE, text=True)
        assert second.stdout.readline() == f"waiting for another build in {build.FOLDER}\n"
    assert second.communicate()[0].strip().endswith("libsola_emulated.so")
    assert second.returncode == 0


def test_kernels_do_run_there(library) -> None:
    before = library.blocks_run()
    emulated.softmax_attention(*(torch.randn(1, 130, 2, 8) for _ in range(3)))
    assert library.blocks_run() - before == 2 * 3
