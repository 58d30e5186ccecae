"""What the CUDA kernels must do beside agreeing with the references: memory layouts, numbers at the edge, determinism.

The emulator and a GPU are held to the same list: every check takes a ``Device``. Needs torch and pytest alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import SMALL_CUDA_CASES, Case
from tolerances import check_close
from torch import Tensor

from sola_vision.ops import reference

HALF_AND_FLOAT = (torch.float32, torch.bfloat16, torch.float16)
_NAN, _INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Device:
    """Where tensors lie, and the module whose operators run there. ``tokens``: of the checks over many of them."""

    name: str
    ops: Any
    tokens: int

    def inputs(self, case: Case, dtype: torch.dtype) -> list[Tensor]:
        return [tensor.to(self.name) for tensor in case.inputs(dtype)]

    def run(self, case: Case, inputs: list[Tensor], grad: Tensor | None = None) -> list[Tensor]:
        """The output and all gradients."""
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        out = case.call(self.ops, inputs)
        grad = torch.ones_like(out) if grad is None else grad
        return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def same_bits(left: list[Tensor], right: list[Tensor]) -> None:
    for mine, theirs in zip(left, right, strict=True):
        assert torch.equal(mine, theirs)


def strided_inputs(device: Device, case: Case, dtype: torch.dtype) -> None:
    """Every second token, and tokens that lie inside batches, give the same bits as dense copies."""
    inputs, strided = device.inputs(case, dtype), []
    for index, tensor in enumerate(inputs):
        if index >= case.token_inputs:
            strided.append(torch.stack([tensor, tensor], 1)[:, 0])
        elif index == 0:
            strided.append(torch.stack([tensor, tensor], 2).flatten(1, 2)[:, ::2])
        else:
            strided.append(tensor.transpose(0, 1).contiguous().transpose(0, 1))
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(case.refer(inputs).shape, generator=generator).to(device.name, dtype)
    same_bits(device.run(case, strided, grad), device.run(case, inputs, grad))


def slices_of_one_projection(device: Device, dtype: torch.dtype, dim: int) -> None:
    """(B, N, 3, H, D) goes in as it is; a head dim off by one puts rows at odd addresses."""
    case = Case("linear_attention", (2, 70, 70, 2, dim, dim))
    qkv = torch.randn(2, 70, 3, 2, dim, generator=torch.Generator().manual_seed(0)).to(device.name, dtype)
    views = list(qkv.unbind(2))
    for op in ("linear_attention", "softmax_attention"):
        one = Case(op, case.sizes)
        same_bits(device.run(one, views), device.run(one, [view.contiguous() for view in views]))


def expanded_gradients(device: Device, case: Case) -> None:
    """Stride 0 in any dimension: ``.sum()`` sends one number back."""
    inputs = device.inputs(case, torch.float32)
    shape = case.refer(inputs).shape
    one = torch.ones((), device=device.name).expand(shape)
    row = torch.randn(shape[-1], generator=torch.Generator().manual_seed(1)).to(device.name).expand(shape)
    for grad in (one, row):
        same_bits(device.run(case, inputs, grad), device.run(case, inputs, grad.contiguous()))


def empty_inputs(device: Device, sizes: tuple[int, ...], op: str, dtype: torch.dtype) -> None:
    """Nothing to attend to gives 0, and gradients of 0."""
    case = Case(op, sizes)
    inputs = device.inputs(case, dtype)
    out, *grads = device.run(case, inputs)
    batch, queries, keys, heads, _dim, value_dim = sizes
    assert out.shape == (batch, queries, heads, value_dim)
    assert keys > 0 or not out.any()
    for grad, tensor in zip(grads, inputs, strict=True):
        assert grad.shape == tensor.shape
        assert queries * keys > 0 or not grad.any()


def empty_chunks_and_scans(device: Device) -> None:
    for batch, tokens, heads in ((0, 5, 2), (2, 0, 2), (2, 5, 0)):
        chunked = Case("linear_attention", (batch, tokens, tokens, heads, 8, 8), decay=0.9)
        scans = Case("wkv", (batch, tokens, heads)), Case("shift_mix", (batch, tokens, 3, heads, 2))
        for case in (chunked, *scans):
            inputs = device.inputs(case, torch.float32)
            out, *grads = device.run(case, inputs)
            assert out.numel() == 0
            for grad, tensor in zip(grads, inputs, strict=True):
                assert grad.shape == tensor.shape
                assert not grad.any()


def nan_and_inf(device: Device, case: Case, index: int, value: float, dtype: torch.dtype = torch.float32) -> None:
    """They reach the outputs that they reach in the definition, also through tensor cores and their padding."""
    inputs = device.inputs(case, dtype)
    inputs[index][0, -1, 0, 0] = value
    got, expected = case.call(device.ops, inputs), case.refer([tensor.double() for tensor in inputs])
    touched = ~expected.isfinite()
    assert torch.equal(~got.isfinite(), touched)
    left, right = got[~touched].double(), expected[~touched]
    if dtype == torch.float32:
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    else:
        assert (left - right).norm() <= 0.02 * right.norm()


def nan_in_wkv_stays_in_its_channel(device: Device, which: str, value: float) -> None:
    k, v = torch.randn(2, 70, 5), torch.randn(2, 70, 5)
    (k if which == "k" else v)[0, 40, 3] = value
    out = device.ops.wkv(*(tensor.to(device.name) for tensor in (k, v, torch.rand(5), torch.rand(5))))
    assert not out[0, :, 3].isfinite().any()
    assert out[:, :, :3].isfinite().all()
    assert out[1].isfinite().all()


def nan_in_shift_mix_reaches_neighbours(device: Device, value: float, dtype: torch.dtype) -> None:
    """A token's channel is seen by itself and by the one neighbour that takes this group from it."""
    case = Case("shift_mix", (2, 5, 6, 32, 3))
    x, ratios = device.inputs(case, dtype)
    for group, (row, column) in enumerate(((2, 4), (2, 2), (3, 3), (1, 3))):
        bad = x.clone()
        bad[0, 2, 3, 8 * group + 3] = value
        seen = ~case.call(device.ops, [bad, ratios]).isfinite()
        assert seen.sum() == 2 * 3
        assert seen[:, 0, [2, row], [3, column], 8 * group + 3].all()


def decays_that_nobody_learns(device: Device, library: Any, *, causal: bool) -> None:
    """Their gradient is left out, and the others stay the same bits."""
    case = Case("linear_attention", (1, 300, 300, 2, 8, 8), (("causal", causal),), decay=0.98)
    *tokens, decay = device.inputs(case, torch.float32)
    tokens = [tensor.requires_grad_() for tensor in tokens]
    fixed = torch.autograd.grad(case.call(device.ops, [*tokens, decay]).square().sum(), tokens)
    learnt = torch.autograd.grad(
        case.call(device.ops, [*tokens, decay.requires_grad_()]).square().sum(), [*tokens, decay]
    )
    same_bits(list(fixed), list(learnt[:3]))
    assert learnt[3].all()
    q, k, v, decay = (tensor.detach() for tensor in (*tokens, decay))
    options = ("elu1", causal, True, 1e-6, 64)
    out, total = library.chunked_linear_attention(q, k, v, decay, *options)
    *_, grad_decay = library.chunked_linear_attention_backward(out, q, k, v, decay, out, total, *options, False)
    assert grad_decay.numel() == 0


def zero_normaliser(device: Device, dtype: torch.dtype, kind: dict[str, Any], eps: float) -> None:
    """ReLU features of negative numbers: numerator and normaliser are both 0, and so are output and gradients."""
    q = (-torch.rand(1, 70, 2, 8) - 1).to(device.name, dtype)
    k, v = (torch.randn(1, 70, 2, 8).to(device.name, dtype) for _ in range(2))
    q, k, v = (tensor.requires_grad_() for tensor in (q, k, v))
    kind = {key: torch.full((2,), it, device=device.name) if key == "decay" else it for key, it in kind.items()}
    out = device.ops.linear_attention(q, k, v, feature_map="relu", eps=eps, **kind)
    assert not out.any()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert not grad.any()


def no_overflow_over_many_tokens(device: Device, dtype: torch.dtype, kind: dict[str, Any]) -> None:
    """Sums of features far beyond 65,504, the largest float16: a weighted mean of ones stays one."""
    q, k = (torch.full((1, device.tokens, 1, 8), 2.0, dtype=dtype, device=device.name) for _ in range(2))
    v = torch.ones(1, device.tokens, 1, 4, dtype=dtype, device=device.name)
    kind = {key: torch.full((1,), it, device=device.name) if key == "decay" else it for key, it in kind.items()}
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = device.ops.linear_attention(*inputs, **kind)
    torch.testing.assert_close(out.float(), torch.ones_like(out, dtype=torch.float32), rtol=2e-3, atol=0)
    for grad in torch.autograd.grad(out.float().mean(), inputs):
        assert grad.isfinite().all()


def large_scores(device: Device, dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 130, 1, 16).to(device.name, dtype) for _ in range(3))
    out = device.ops.softmax_attention(q, k, v, scale=500.0)
    expected = Case("softmax_attention", (), (("scale", 500.0),)).refer([q.double(), k.double(), v.double()])
    assert out.isfinite().all()
    # scores near 10⁴ carry roundings near 10⁻³ into the exponent
    torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.05)


def wide_parameters(device: Device, dtype: torch.dtype) -> None:
    """A norm whose parameters are float32 beside tokens of 16 bits: their digits and the dtype of their gradients stay."""
    for channels in (5, 96, 2048, 2056, 4096):
        x, weight, bias = (
            tensor.to(device.name) for tensor in Case("layer_norm", (2, 70, channels)).inputs(torch.float32)
        )
        x, weight = x.to(dtype), 1 + weight / 1000
        grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(device.name, dtype)
        results = []
        for where, cast in ((device.ops, dtype), (reference, torch.float64)):
            inputs = [x.detach().to(cast).requires_grad_()]
            inputs += [t.detach().to(torch.promote_types(cast, t.dtype)).requires_grad_() for t in (weight, bias)]
            out = where.layer_norm(*inputs)
            results.append([out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))])
        got, exact = results
        assert [tensor.dtype for tensor in got] == [dtype, dtype, torch.float32, torch.float32]
        check_close("tokens", got[:2], got[:2], exact[:2], dtype)
        # rounded once where tokens are, and not again
        check_close("parameters", got[2:], got[2:], exact[2:], torch.float32, conditioning=8.0)


def nan_stays_in_its_token(device: Device, value: float, dtype: torch.dtype) -> None:
    for channels in (7, 96):
        x, weight, bias = device.inputs(Case("layer_norm", (2, 70, channels)), dtype)
        x[1, 4, 3] = value
        seen = ~device.ops.layer_norm(x, weight, bias).isfinite()
        assert seen[1, 4].all()
        assert seen.sum() == channels


def same_bits_every_time(device: Device, case: Case, dtype: torch.dtype, disturb: Callable[[int], None]) -> None:
    """``disturb(i)`` comes before run i: other work, or another order of things."""
    inputs = device.inputs(case, dtype)
    first = None
    for i in range(20 if device.name != "cpu" else 3):
        disturb(i)
        results = device.run(case, inputs)
        first = results if first is None else first
        same_bits(results, first)


def offsets_beyond_int32(device: Device, library: Any, attention: str, axis: int) -> None:
    """Elements 2³¹ apart, in memory that is reserved and mostly untouched: offsets in 32 bits would wrap."""
    generator = torch.Generator().manual_seed(0)
    # rows of channel mix and layer norm lie at one distance, or are copied
    shape = {"wkv": (2, 3, 16), "channel_mix": (1, 3, 16), "layer_norm": (1, 3, 16)}.get(attention, (2, 3, 2, 16))
    q, k, v, grad = (torch.randn(shape, generator=generator).to(device.name, torch.bfloat16) for _ in range(4))
    strides = list(k.stride())
    strides[axis] = 2**31 + 64
    span = strides[axis] * (k.size(axis) - 1) + k[0].numel() + k.numel()
    far = torch.empty(span, dtype=k.dtype, device=device.name).as_strided(k.shape, strides).copy_(k)
    rates = [torch.rand(16, generator=generator).to(device.name) for _ in range(2)]

    def both_ways(middle: Tensor) -> list[Tensor]:
        # the schemas by hand: autograd would make a dense gradient of the huge storage
        if attention == "softmax":
            out, lse = library.softmax_attention(q, middle, v, 0.25, False)
            return [out, *library.softmax_attention_backward(grad, q, middle, v, out, lse, 0.25, False)]
        if attention == "linear":
            out, *sums = library.linear_attention(q, middle, v, "elu1", True, 1e-6)
            return [out, *library.linear_attention_backward(grad, q, middle, v, *sums, "elu1", True, 1e-6)]
        if attention == "causal":
            options = ("elu1", True, True, 1e-6, 64)
            out, total = library.chunked_linear_attention(q, middle, v, None, *options)
            return [out, *library.chunked_linear_attention_backward(grad, q, middle, v, None, out, total, *options)]
        if attention == "shift_mix":
            ratios = torch.stack(rates)
            return [*library.shift_mix(middle, ratios), *library.shift_mix_backward([grad, q], middle, ratios)]
        if attention == "layer_norm":
            parameters = [rate.to(q.dtype) for rate in rates]
            out = library.layer_norm(middle, *parameters, 1e-5)
            return [out, *library.layer_norm_backward(grad, middle, *parameters, 1e-5)]
        if attention == "channel_mix":
            maps = [
                torch.randn(size, generator=torch.Generator().manual_seed(1)).to(q) for size in ((24, 16), (16, 24))
            ]
            maps.append(k.new_ones(16, 16))
            out = library.channel_mix(middle, q, *maps)
            return [out, *library.channel_mix_backward(grad, middle, q, *maps, out)]
        out, saved = library.wkv(middle, v, *rates, True)
        return [out, *library.wkv_backward(grad, middle, v, *rates, out, saved)]

    same_bits(both_ways(far), both_ways(k))


def results_beyond_int32(device: Device, attention: str) -> None:
    """More than 2³¹ elements of inputs and results, in halves: the last rows are what they are by themselves."""
    tokens, dim, kept = 2**25 + 64, 64, 64

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device.name, dtype=torch.bfloat16)

    if attention in ("softmax", "linear"):
        op = getattr(device.ops, f"{attention}_attention")
        q, k, v = random(1, tokens, 1, dim), random(1, 64, 1, dim), random(1, 64, 1, dim)
        out, expected = op(q, k, v), op(q[:, -kept:].contiguous(), k, v)
    elif attention == "causal":
        q, near = random(1, tokens, 1, dim), 4096
        decay = torch.full((1,), 0.5, device=device.name)
        out, expected = (
            device.ops.linear_attention(x, x, x, decay=decay, causal=True) for x in (q, q[:, -near:].contiguous())
        )
    elif attention == "shift_mix":
        x, ratios = random(1, 1, tokens, dim), torch.full((1, dim), 0.25, device=device.name)
        # one token more, whose right neighbour of the cut is left out
        (out,), (expected,) = device.ops.shift_mix(x, ratios), device.ops.shift_mix(x[:, :, -kept - 1 :], ratios)
        out, expected = out[:, 0], expected[:, 0]
    elif attention == "layer_norm":
        x, parameters = random(1, tokens, dim), [random(dim) for _ in range(2)]
        out, expected = (device.ops.layer_norm(each, *parameters) for each in (x, x[:, -kept:].contiguous()))
    elif attention == "channel_mix":
        x, square = random(1, tokens, dim), random(dim, dim) / 8
        out, expected = (device.ops.channel_mix(each, each, *[square] * 3) for each in (x, x[:, -kept:].contiguous()))
    else:
        k, near = random(1, tokens, dim), 4096
        rates = torch.ones(dim, device=device.name), torch.zeros(dim, device=device.name)
        out, expected = (device.ops.wkv(x, x, *rates, decay_per="token") for x in (k, k[:, -near:].contiguous()))
    assert out.numel() > 2**31
    check_close(attention, [out[:, -kept:]], [expected[:, -kept:]], [expected[:, -kept:].double()], torch.bfloat16)


# enough tokens for several ranges, chunks and stretches
LONG_CASES = (
    Case("softmax_attention", (1, 150, 170, 2, 40, 24)),
    Case("linear_attention", (1, 900, 900, 1, 24, 40)),
    Case("linear_attention", (1, 200, 200, 2, 24, 40), decay=0.98),
    Case("linear_attention", (1, 200, 200, 2, 24, 40), (("causal", True),)),
    Case("wkv", (2, 100, 70)),
    Case("shift_mix", (2, 9, 31, 160, 3)),
    Case("layer_norm", (2, 330, 96)),
    Case("channel_mix", (2, 150, 96, 200)),
)

EMPTY_SIZES = ((0, 5, 5, 2, 8, 4), (2, 5, 5, 0, 8, 4), (2, 0, 5, 2, 8, 4), (2, 5, 0, 2, 8, 4), (2, 0, 0, 2, 8, 4))
KINDS = ({}, {"causal": True}, {"decay": 0.9})
FEW_TOKENS = tuple(case for case in SMALL_CUDA_CASES if case.token_inputs == 3 and case.sizes[1] < 64)
VALUES = (_NAN, _INF, -_INF)
