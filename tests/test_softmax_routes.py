"""Softmax attention on CUDA by PyTorch's kernels: what goes in and what comes out, without a device.

The host code of the CUDA build runs on CPU tensors (``emulated``), and PyTorch's three operators, which have no kernels
there, are stood in for by their definition, with outputs laid out as the CUDA kernels leave them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import emulated
import pytest
import torch
from against_reference import agrees
from cases import Case
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")

# as many tokens as cuDNN takes; the emulator runs the backward
CASES = (
    Case("softmax_attention", (2, 128, 128, 2, 16, 16)),
    Case("softmax_attention", (1, 128, 256, 3, 8, 8), (("scale", 0.7),)),
    Case("softmax_attention", (1, 128, 128, 2, 24, 24), (("causal", True),)),
)
BACKENDS = ("flash", "cudnn", "efficient")
OPS = {
    "flash": "_scaled_dot_product_flash_attention",
    "cudnn": "_scaled_dot_product_cudnn_attention",
    "efficient": "_scaled_dot_product_efficient_attention",
}


def definition(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """(B, H, N, D) → out in the dtype of q and logsumexp (B, H, N) in float32."""
    scores = q.float() @ k.float().mT * scale
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    return (scores.softmax(-1) @ v.float()).to(q.dtype), scores.logsumexp(-1)


def _nothing(count: int) -> list[Tensor]:
    return [torch.empty(0) for _ in range(count)]


class Kernels:
    """PyTorch's operators on CPU tensors, and the names of those that were called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def flash(self, q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
        assert not dropout_p
        assert not return_debug_mask
        self.called.append("flash")
        out, logsumexp = definition(q, k, v, is_causal, scale)
        # as q lies in memory, whatever that is
        out = torch.empty_like(q.transpose(1, 2)).copy_(out.transpose(1, 2)).transpose(1, 2)
        return out, logsumexp, *_nothing(2), q.size(2), k.size(2), *_nothing(3)

    def cudnn(
        self,
        q,
        k,
        v,
        attn_bias,
        compute_log_sumexp,
        dropout_p=0.0,
        is_causal=False,
        return_debug_mask=False,
        *,
        scale=None,
    ):
        assert attn_bias is None
        assert compute_log_sumexp
        assert not dropout_p
        assert not return_debug_mask
        self.called.append("cudnn")
        out, logsumexp = definition(q, k, v, is_causal, scale)
        return torch.empty_like(q).copy_(out), logsumexp.unsqueeze(3), *_nothing(2), q.size(2), k.size(2), *_nothing(3)

    def efficient(self, q, k, v, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):
        assert attn_bias is None
        assert compute_log_sumexp
        assert not dropout_p
        self.called.append("efficient")
        out, logsumexp = definition(q, k, v, is_causal, scale)
        # rows in multiples of 32, and what lies behind the last query means nothing
        padded = torch.full((*logsumexp.shape[:2], (q.size(2) + 31) // 32 * 32), float("inf"))
        padded[:, :, : q.size(2)] = logsumexp
        return out, padded, *_nothing(2)


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    found, library = Kernels(), torch.library.Library("aten", "IMPL")
    for name, op in OPS.items():
        function: Callable = getattr(found, name)
        library.impl(op, function, "CPU")
    yield found
    library._destroy()
    emulated.library().pin_softmax_backend("auto")
    emulated.library().set_softmax_routes([])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(kernels: Kernels, case: Case, backend: str) -> None:
    emulated.library().pin_softmax_backend(backend)
    assert agrees(case, torch.bfloat16, emulated)
    assert kernels.called == [backend]


@pytest.mark.parametrize(("tokens", "keys"), [(130, 33), (1, 7), (33, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_padded_rows_are_cut_off(kernels: Kernels, tokens: int, keys: int, dtype: torch.dtype) -> None:
    emulated.library().pin_softmax_backend("efficient")
    assert agrees(Case("softmax_attention", (1, tokens, keys, 2, 8, 16)), dtype, emulated)
    assert kernels.called == ["efficient"]


@pytest.mark.parametrize("backend", [*BACKENDS, "own"])
@pytest.mark.parametrize("layout", ["dense", "projection", "heads first", "tokens first"])
def test_outputs_are_contiguous_and_ours(kernels: Kernels, layout: str, backend: str) -> None:
    """Whatever the inputs' strides: the fake says contiguous, and the saved logsumexp goes to our backward."""
    q, k, v = torch.randn(2, 128, 3, 2, 16, generator=torch.Generator().manual_seed(0)).bfloat16().unbind(2)
    if layout == "dense":
        q, k, v = (x.contiguous() for x in (q, k, v))
    elif layout != "projection":
        axes = (1, 2) if layout == "heads first" else (0, 1)
        q, k, v = (x.transpose(*axes).contiguous().transpose(*axes) for x in (q, k, v))
    emulated.library().pin_softmax_backend(backend)
    out, logsumexp = emulated.library().softmax_attention(q, k, v, 0.25, False)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert (logsumexp.shape, logsumexp.dtype) == ((2, 2, 128), torch.float32)
    assert out.is_contiguous()
    assert logsumexp.is_contiguous()
    expected, expected_logsumexp = definition(*(x.transpose(1, 2) for x in (q, k, v)), False, 0.25)
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=0.02, atol=0.02)
    torch.testing.assert_close(logsumexp, expected_logsumexp)


def _q(tokens: int = 128) -> Tensor:
    return torch.randn(1, tokens, 2, 16).bfloat16()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: torch.randn(1, 128, 2, 24).bfloat16()[..., 4:20], "addresses and strides in multiples of 16 bytes"),
        (lambda: torch.randn(1, 128, 2, 20).bfloat16()[..., :16], "addresses and strides in multiples of 16 bytes"),
        (lambda: _q(1).expand(1, 128, 2, 16), "no expanded tensors"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_that_they_cannot_take(
    kernels: Kernels, make: Callable[[], Tensor], sentence: str, backend: str
) -> None:
    """By name an error that says why and what helps, by the list our own kernel."""
    strange, q = make(), _q()
    emulated.library().pin_softmax_backend(backend)
    with pytest.raises(
        ValueError, match=rf"the backend {backend} can't take this call: it takes {sentence}; softmax_b"
    ):
        emulated.softmax_attention(q, strange, q)
    emulated.library().pin_softmax_backend("auto")
    emulated.library().set_softmax_routes([backend])
    emulated.softmax_attention(q, strange, q)
    assert not kernels.called
    emulated.softmax_attention(q, q, q)
    assert kernels.called == [backend]


def test_dimensions_of_one_have_strides_that_mean_nothing(kernels: Kernels) -> None:
    emulated.library().pin_softmax_backend("flash")
    q = _q()
    odd = q.as_strided(q.shape, (7, *q.stride()[1:]))
    emulated.softmax_attention(odd, odd, odd)
    assert kernels.called == ["flash"]


def test_offsets_beyond_32_bits_are_ours(kernels: Kernels) -> None:
    emulated.library().pin_softmax_backend("flash")
    q = _q(2)
    far = torch.empty(2**31 + 64, dtype=torch.bfloat16).as_strided((1, 2, 2, 16), (0, 2**31, 16, 1)).copy_(q)
    with pytest.raises(ValueError, match="offsets within a batch up to"):
        emulated.library().softmax_attention(q, far, q, 0.25, False)


def test_what_is_switched_off_in_pytorch_stays_off(kernels: Kernels) -> None:
    q = _q()
    switches = {
        "flash": torch.backends.cuda.enable_flash_sdp,
        "cudnn": torch.backends.cuda.enable_cudnn_sdp,
        "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    }
    for backend, switch in switches.items():
        emulated.library().pin_softmax_backend(backend)
        switch(False)
        try:
            with pytest.raises(ValueError, match="it is switched off in PyTorch"):
                emulated.softmax_attention(q, q, q)
        finally:
            switch(True)
        emulated.softmax_attention(q, q, q)
    torch.use_deterministic_algorithms(True)
    try:
        emulated.library().pin_softmax_backend("cudnn")
        with pytest.raises(ValueError, match="switched off"):
            emulated.softmax_attention(q, q, q)
    finally:
        torch.use_deterministic_algorithms(False)


def test_empty_tensors_are_ours_whoever_is_asked_for(kernels: Kernels) -> None:
    emulated.library().pin_softmax_backend("flash")
    assert not emulated.softmax_attention(_q(3), _q(0), _q(0)).any()
    assert emulated.softmax_attention(_q(0), _q(3), _q(3)).shape == (1, 0, 2, 16)
    assert not kernels.called
