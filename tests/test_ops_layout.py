"""Memory layouts: strided views, expanded gradients, empty and huge tensors."""

import pytest
import torch
from cases import SMALL_CASES, Case

from sola_vision import ops


def _run_and_grads(case: Case, inputs, grad):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = case.run(inputs)
    return [out, *torch.autograd.grad(out, inputs, grad)]


def _same(left, right) -> None:
    for mine, theirs in zip(left, right, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("attention", ["softmax", "linear", "causal"])
def test_slices_of_one_projection_go_in_as_they_are(attention: str, dtype: torch.dtype) -> None:
    """The three slices of a (B, N, 3, H, D) projection give the same bits as dense copies of them."""
    generator = torch.Generator().manual_seed(0)
    # D = 40 is no multiple of a vector, 64 is
    for dim in (40, 64):
        qkv = torch.randn(2, 70, 3, 2, dim, generator=generator).to(dtype)
        views = qkv.unbind(2)
        assert not views[0].is_contiguous()

        def run(q, k, v):
            if attention == "softmax":
                return ops.softmax_attention(q, k, v)
            return ops.linear_attention(q, k, v, causal=attention == "causal")

        leaf = qkv.clone().requires_grad_()
        out = run(*leaf.unbind(2))
        grad = torch.randn(out.shape, generator=generator).to(dtype)
        out.backward(grad)
        dense = [view.contiguous().requires_grad_() for view in views]
        expected = run(*dense)
        assert torch.equal(out, expected)
        _same(leaf.grad.unbind(2), torch.autograd.grad(expected, dense, grad))


_SINGLE_TOKENS = (
    Case("softmax_attention", (3, 1, 1, 2, 4, 6)),
    Case("linear_attention", (3, 1, 1, 2, 4, 6)),
    Case("linear_attention", (3, 1, 1, 1, 4, 4), (("causal", True),)),
    Case("linear_attention", (3, 1, 1, 2, 4, 4), (), decay=0.9),
    Case("wkv", (3, 1, 5)),
    Case("shift_mix", (3, 1, 1, 9, 2)),
    Case("layer_norm", (3, 1, 9)),
    Case("channel_mix", (3, 1, 16, 24)),
    Case("channel_mix", (3, 1, 5, 7)),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", _SINGLE_TOKENS, ids=str)
def test_a_stride_of_what_is_alone_says_nothing(case: Case, dtype: torch.dtype) -> None:
    """A pooled map as tokens has strides (C, 1, 1), tokens that come before images (C, B·C, 1): both are contiguous."""
    inputs = case.inputs(dtype)
    grad = torch.randn(case.run(inputs).shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def with_strides(tensor: torch.Tensor, stride: int) -> torch.Tensor:
        strides = [stride if size == 1 else step for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
        return tensor.as_strided(tensor.shape, strides)

    expected = _run_and_grads(case, inputs, grad)
    for stride in (1, 3, 10**6):
        _same(_run_and_grads(case, [with_strides(x, stride) for x in inputs], with_strides(grad, stride)), expected)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_transposed_and_sliced_inputs(case: Case) -> None:
    """Any strides but the last: (B, H, N, D) storage, every second token, a batch that is expanded."""
    inputs = case.inputs(torch.float32)
    strided = []
    for index, tensor in enumerate(inputs):
        if index >= case.token_inputs:
            strided.append(torch.stack([tensor, tensor], 1)[:, 0])
        elif index == 0:
            strided.append(torch.stack([tensor, tensor], 2).flatten(1, 2)[:, ::2])
        else:
            strided.append(tensor.transpose(0, 1).contiguous().transpose(0, 1))
    grad = torch.randn(case.run(inputs).shape, generator=torch.Generator().manual_seed(1))
    _same(_run_and_grads(case, strided, grad), _run_and_grads(case, inputs, grad))


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_expanded_inputs_and_gradients(case: Case) -> None:
    """Stride 0: a gradient from ``.sum()`` is one number expanded to the whole shape."""
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float32)]
    out = case.run(inputs)
    expanded = torch.ones(()).expand(out.shape)
    _same(torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(case.run(inputs), inputs, expanded.contiguous()))
    row = torch.randn(out.shape[-1])
    got = torch.autograd.grad(case.run(inputs), inputs, row.expand(out.shape))
    _same(got, torch.autograd.grad(case.run(inputs), inputs, row.expand(out.shape).contiguous()))


def test_an_expanded_batch_is_read_in_place() -> None:
    k = torch.randn(1, 9, 2, 8).expand(3, 9, 2, 8)
    q, v = torch.randn(3, 9, 2, 8), torch.randn(3, 9, 2, 8)
    assert torch.equal(ops.softmax_attention(q, k, v), ops.softmax_attention(q, k.contiguous(), v))


_EMPTY = {
    "no batch": (0, 5, 5, 2, 8, 4),
    "no heads": (2, 5, 5, 0, 8, 4),
    "no queries": (2, 0, 5, 2, 8, 4),
    "no keys": (2, 5, 0, 2, 8, 4),
    "no tokens": (2, 0, 0, 2, 8, 4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", _EMPTY.values(), ids=_EMPTY)
@pytest.mark.parametrize("attention", ["softmax", "linear", "linear without normaliser"])
def test_empty_attention(attention: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Nothing to attend to gives 0, and gradients of 0."""
    case = Case("softmax_attention", sizes)
    inputs = [tensor.requires_grad_() for tensor in case.inputs(dtype)]
    if attention == "softmax":
        out = ops.softmax_attention(*inputs)
    else:
        out = ops.linear_attention(*inputs, normalize=attention == "linear")
    batch, queries, keys, heads, _dim, value_dim = sizes
    assert out.shape == (batch, queries, heads, value_dim)
    assert keys > 0 or not out.any()
    for grad, tensor in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
        assert grad.shape == tensor.shape
        assert queries * keys > 0 or not grad.any()


@pytest.mark.parametrize("kind", [{"causal": True}, {"decay": 0.9}, {"causal": True, "decay": 0.9}], ids=str)
@pytest.mark.parametrize("sizes", [(0, 5, 2), (2, 0, 2), (2, 5, 0)], ids=str)
def test_empty_chunked_attention(sizes: tuple[int, int, int], kind: dict) -> None:
    batch, tokens, heads = sizes
    inputs = [torch.randn(batch, tokens, heads, 8, requires_grad=True) for _ in range(3)]
    kind = dict(kind)
    if "decay" in kind:
        kind["decay"] = torch.full((heads,), kind["decay"], requires_grad=True)
        inputs.append(kind["decay"])
    out = ops.linear_attention(*inputs[:3], **kind)
    assert out.shape == (batch, tokens, heads, 8)
    for grad, tensor in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


@pytest.mark.parametrize("sizes", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=str)
def test_empty_wkv(sizes: tuple[int, int, int]) -> None:
    k, v = torch.randn(sizes, requires_grad=True), torch.randn(sizes, requires_grad=True)
    decay, bonus = torch.rand(sizes[2], requires_grad=True), torch.rand(sizes[2], requires_grad=True)
    out = ops.wkv(k, v, decay, bonus)
    assert out.shape == sizes
    for grad, tensor in zip(torch.autograd.grad(out.sum(), (k, v, decay, bonus)), (k, v, decay, bonus), strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


@pytest.mark.parametrize("sizes", [(0, 5, 3, 4), (2, 0, 3, 4), (2, 5, 0, 4)], ids=str)
def test_empty_channel_mix(sizes: tuple[int, int, int, int]) -> None:
    inputs = [tensor.requires_grad_() for tensor in Case("channel_mix", sizes).inputs(torch.float32)]
    out = ops.channel_mix(*inputs)
    assert out.shape == sizes[:3]
    for grad, tensor in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


@pytest.mark.parametrize("sizes", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=str)
def test_empty_layer_norm(sizes: tuple[int, int, int]) -> None:
    inputs = [tensor.requires_grad_() for tensor in Case("layer_norm", sizes).inputs(torch.float32)]
    out = ops.layer_norm(*inputs)
    assert out.shape == sizes
    for grad, tensor in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


@pytest.mark.parametrize("sizes", [(0, 5, 3, 4), (2, 0, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0)], ids=str)
def test_empty_shift_mix(sizes: tuple[int, int, int, int]) -> None:
    x, ratios = torch.randn(sizes, requires_grad=True), torch.rand(2, sizes[3], requires_grad=True)
    mixes = ops.shift_mix(x, ratios)
    assert [mix.shape for mix in mixes] == [x.shape] * 2
    for grad, tensor in zip(torch.autograd.grad(sum(mixes).sum(), (x, ratios)), (x, ratios), strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


def test_mixes_that_nobody_uses() -> None:
    """A branch without a gradient has a gradient of zero."""
    case = Case("shift_mix", (1, 4, 5, 12, 2))
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float32)]
    first, second = ops.shift_mix(*inputs)
    got = torch.autograd.grad(first.square().sum(), inputs)
    first, second = ops.shift_mix(*inputs)
    _same(got, torch.autograd.grad(first.square().sum() + 0 * second.sum(), inputs))


def _far_apart(dense: torch.Tensor, axis: int) -> torch.Tensor:
    """The same numbers with entries along `axis` more than 2³¹ elements apart, in memory that is mostly untouched."""
    stride = 2**31 + 64
    strides = list(dense.stride())
    strides[axis] = stride
    span = stride * (dense.size(axis) - 1) + dense[0].numel() + dense.numel()
    # reserved, not written: pages come into being where they are touched
    far = torch.empty(span, dtype=dense.dtype).as_strided(dense.shape, strides)
    return far.copy_(dense)


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "token"])
@pytest.mark.parametrize("attention", ["softmax", "linear", "causal", "wkv", "shift_mix", "layer_norm", "channel_mix"])
def test_offsets_beyond_int32(attention: str, axis: int) -> None:
    """Elements 2³¹ apart: offsets in 32 bits would wrap to the wrong place."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 16) if attention in ("wkv", "layer_norm", "channel_mix") else (2, 3, 2, 16)
    dense = [torch.randn(shape, generator=generator).to(torch.bfloat16) for _ in range(4)]
    far = _far_apart(dense[1], axis)
    parameters = [torch.rand(16, generator=generator) for _ in range(2)]

    def both_ways(middle: torch.Tensor) -> list[torch.Tensor]:
        """Forward and backward schemas by hand: autograd would make a dense gradient of the huge storage."""
        q, v, grad = dense[0], dense[2], dense[3]
        sola = torch.ops.sola
        if attention == "softmax":
            out, lse = sola.softmax_attention(q, middle, v, 0.25, False)
            return [out, *sola.softmax_attention_backward(grad, q, middle, v, out, lse, 0.25, False)]
        if attention == "linear":
            out, state, total = sola.linear_attention(q, middle, v, "elu1", True, 1e-6)
            return [out, *sola.linear_attention_backward(grad, q, middle, v, state, total, "elu1", True, 1e-6)]
        if attention == "causal":
            arguments = ("elu1", True, True, 1e-6, 64)
            out, total = sola.chunked_linear_attention(q, middle, v, None, *arguments)
            return [out, *sola.chunked_linear_attention_backward(grad, q, middle, v, None, out, total, *arguments)]
        if attention == "shift_mix":
            ratios = torch.stack(parameters)
            return [*sola.shift_mix(middle, ratios), *sola.shift_mix_backward([grad, q], middle, ratios)]
        if attention == "layer_norm":
            halves = [parameter.to(q.dtype) for parameter in parameters]
            out = sola.layer_norm(middle, *halves, 1e-5)
            return [out, *sola.layer_norm_backward(grad, middle, *halves, 1e-5)]
        if attention == "channel_mix":
            weights = [torch.ones(16, 16, dtype=torch.bfloat16)] * 3
            out = sola.channel_mix(middle, v, *weights)
            return [out, *sola.channel_mix_backward(grad, middle, v, *weights, out)]
        out, saved = sola.wkv(middle, v, *parameters, True)
        return [out, *sola.wkv_backward(grad, middle, v, *parameters, out, saved)]

    _same(both_ways(far), both_ways(dense[1]))


def test_a_gradient_far_apart() -> None:
    """The gradient may be a slice of something huge, too."""
    q, k, v = (torch.randn(2, 3, 2, 16).to(torch.bfloat16) for _ in range(3))
    out, lse = torch.ops.sola.softmax_attention(q, k, v, 0.25, False)
    grad = torch.randn(2, 3, 2, 16).to(torch.bfloat16)
    backward = torch.ops.sola.softmax_attention_backward
    _same(
        backward(_far_apart(grad, 0), q, k, v, out, lse, 0.25, False),
        backward(grad, q, k, v, out, lse, 0.25, False),
    )
