"""Determinism, threads, forks, and every compiled instruction set."""

import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from against_reference import agrees
from cases import CASES, DTYPES, SMALL_CASES, Case

from sola_vision import ops

# enough tokens that work is split between threads, also with one head
LONG_CASES = (
    Case("softmax_attention", (1, 1000, 1000, 1, 64, 64)),
    Case("softmax_attention", (1, 700, 700, 3, 32, 32), (("causal", True),)),
    Case("linear_attention", (1, 3000, 3000, 1, 64, 64)),
    Case("linear_attention", (1, 3000, 3000, 1, 64, 64), (("causal", True),)),
    Case("linear_attention", (2, 3000, 3000, 2, 32, 32), (), decay=0.99),
    Case("wkv", (1, 3000, 40)),
    Case("wkv", (2, 2000, 130), (("decay_per", "token"),)),
    Case("shift_mix", (2, 40, 50, 130, 3)),
    Case("layer_norm", (2, 1000, 130)),
    Case("channel_mix", (2, 1000, 40, 150)),
    # fewer tokens than threads want: hidden units are cut
    Case("channel_mix", (1, 49, 96, 384)),
)


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _everything(case: Case, dtype: torch.dtype) -> list[torch.Tensor]:
    inputs = [tensor.requires_grad_() for tensor in case.inputs(dtype)]
    out = case.run(inputs)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LONG_CASES, ids=str)
def test_two_runs_are_identical(case: Case, dtype: torch.dtype, threads) -> None:
    threads(2)
    first = _everything(case, dtype)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, _everything(case, dtype), strict=True))


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_tokens_of_a_channel_mix_are_cut_among_any_threads(count: int, threads) -> None:
    """Every share of the gradients of weights has tokens, whatever does not divide: 129 to 1,537 of them."""
    threads(count)
    for tokens in (129, 256, 300, 385, 513, 700, 1537):
        assert agrees(Case("channel_mix", (1, tokens, 12, 20)), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_hidden_units_of_a_channel_mix_are_cut_among_any_threads(count: int, dtype: torch.dtype, threads) -> None:
    """Few tokens, in less than a tile, in tiles that aren't full and in two shares, with units that no cut divides."""
    threads(count)
    for tokens in (1, 17, 49, 65, 130, 260):
        for hidden in (128, 260, 1022):
            assert agrees(Case("channel_mix", (1, tokens, 12, hidden)), dtype)


@pytest.mark.parametrize("causal", [False, True])
def test_many_queries_without_a_key(causal: bool, threads) -> None:
    """Threads that share the queries of one head have no keys to share, in the backward too."""
    threads(2)
    q, k, v = (torch.randn(1, tokens, 1, 8, requires_grad=True) for tokens in (300, 0, 0))
    out = ops.softmax_attention(q, k, v, causal=causal)
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert not out.any()
    assert not grads[0].any()
    assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]


@pytest.mark.parametrize("case", LONG_CASES, ids=str)
def test_threads_agree(case: Case, threads) -> None:
    """1, 2 and 5 threads cut the work differently: the same up to the order of the sums."""
    threads(1)
    one = _everything(case, torch.float32)
    for count in (2, 5):
        threads(count)
        for mine, theirs in zip(_everything(case, torch.float32), one, strict=True):
            scale = theirs.abs().max()
            torch.testing.assert_close(mine / scale, theirs / scale, rtol=1e-4, atol=2e-5)


def test_python_threads_may_call_at_once() -> None:
    expected = [_everything(case, torch.float32) for case in SMALL_CASES]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, wanted in zip(
                pool.map(lambda case: _everything(case, torch.float32), SMALL_CASES), expected, strict=True
            ):
                assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_the_number_of_threads_may_change_between_calls(threads) -> None:
    case = LONG_CASES[0]
    inputs = case.inputs(torch.float32)
    threads(2)
    expected = case.run(inputs)
    for count in (1, 3, 2, 1, 2):
        threads(count)
        torch.testing.assert_close(case.run(inputs), expected)


def test_a_forked_child_may_call() -> None:
    """As data loaders do; the parent has used the ops before, on one thread, as OpenMP demands of a fork."""
    script = (
        "import os, torch; torch.set_num_threads(1)\n"
        "from sola_vision import ops\n"
        "q = torch.randn(1, 100, 2, 32); k = torch.randn(1, 100, 64)\n"
        "run = lambda: (ops.softmax_attention(q, q, q), ops.linear_attention(q, q, q), ops.wkv(k, k, k[0, 0], k[0, 1]))\n"
        "before = run(); child = os.fork()\n"
        "if child == 0: os._exit(0 if all(map(torch.equal, before, run())) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=600).returncode == 0


_CHECK_SET = """
import sys
sys.path.insert(0, sys.argv[1])
import cases, torch
from against_reference import agrees
from sola_vision import ops
assert sys.argv[2] in ops.build_info().values(), ops.build_info()
torch.set_num_threads(1)
dtypes = [getattr(torch, name) for name in sys.argv[4].split(",")]
print(sum(agrees(case, dtype) for case in getattr(cases, sys.argv[3]) for dtype in dtypes))
"""
# another processor, another architecture, no units of this kind
CANT_RUN = ("this processor lacks the instructions", "names no instruction set", "SOLA_BF16=brgemm: ")
_EVERY_DTYPE = tuple(str(dtype).removeprefix("torch.") for dtype in DTYPES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "shown", "dtypes"),
    [
        ("SOLA_ISA", "baseline", "baseline", _EVERY_DTYPE),
        ("SOLA_ISA", "avx2", "avx2", _EVERY_DTYPE),
        ("SOLA_ISA", "avx512", "avx512", _EVERY_DTYPE),
        # other dtypes do not ask for bfloat16 units
        ("SOLA_BF16", "float", "own micro-kernel on tiles widened to float", ("bfloat16",)),
        ("SOLA_BF16", "brgemm", "oneDNN brgemm", ("bfloat16",)),
    ],
    ids=["baseline", "avx2", "avx512", "float", "brgemm"],
)
def test_every_instruction_set_is_right(name: str, value: str, shown: str, dtypes: tuple[str, ...]) -> None:
    """The case list under each set that this machine can run, in a process that is told to use it.

    What this process has chosen by itself went through the whole list in ``test_ops_values.py``.
    """
    cases = "SMALL_CASES" if shown in ops.build_info().values() else "CASES"
    run = subprocess.run(
        [sys.executable, "-c", _CHECK_SET, str(Path(__file__).parent), shown, cases, ",".join(dtypes)],
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    if any(reason in run.stderr for reason in CANT_RUN):
        pytest.skip(f"this machine can't run {value}")
    assert run.returncode == 0, run.stderr[-2000:]
    # a case is passed over only where plain PyTorch overflows
    checked = len(SMALL_CASES if cases == "SMALL_CASES" else CASES) * len(dtypes)
    assert int(run.stdout) >= 0.99 * checked


@pytest.mark.parametrize(("name", "message"), [("SOLA_ISA", "known: "), ("SOLA_BF16", "brgemm")])
def test_an_unknown_setting_is_refused(name: str, message: str) -> None:
    script = "from sola_vision import ops; print(ops.build_info())"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, name: "sse9"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode != 0
    assert "sse9" in run.stderr
    assert message in run.stderr


def test_build_info_names_what_was_chosen() -> None:
    info = ops.build_info()
    assert set(info) == {
        "version",
        "torch",
        "compiler",
        "cuda_architectures",
        "instruction_set",
        "gemm",
        "gemm_bfloat16",
    }
    assert info["torch"] == torch.__version__
    assert info["instruction_set"] in ("avx512", "avx2", "baseline")


def test_bfloat16_runs_on_the_faster_units() -> None:
    """Asked of Linux, which knows the maker and what the processor lets programs use."""
    processor = Path("/proc/cpuinfo")
    fields = dict(
        tuple(part.strip() for part in line.split(":", 1))
        for line in (processor.read_text().splitlines() if processor.exists() else [])
        if ":" in line
    )
    flags = fields.get("flags", "").split()
    if "avx512_bf16" not in flags or "SOLA_BF16" in os.environ:
        pytest.skip("no bfloat16 units here, or told which to use")
    native = "amx_bf16" in flags or fields["vendor_id"] != "GenuineIntel"
    assert ops.build_info()["gemm_bfloat16"] == (
        "oneDNN brgemm" if native else "own micro-kernel on tiles widened to float"
    )
