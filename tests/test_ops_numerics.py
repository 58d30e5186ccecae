"""Numbers at the edge: NaN, Inf, zero normalisers, half precision over many tokens, large scores."""

import device_checks as checks
import pytest
import torch
from cases import SMALL_CASES, Case
from tolerances import check_close
from wkv_checks import wkv_learns_where_keys_lie_far_apart

from sola_vision import ops
from sola_vision.ops import reference

_VALUES = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("value", _VALUES)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("case", [c for c in SMALL_CASES if c.token_inputs == 3 and c.sizes[1] < 64], ids=str)
def test_nan_and_inf_reach_the_same_outputs_as_in_pytorch(case: Case, index: int, value: float) -> None:
    """Where the definition gives NaN or Inf, so does the op; elsewhere both are finite and equal."""
    inputs = case.inputs(torch.float32)
    inputs[index][0, -1, 0, 0] = value
    got, expected = case.run(inputs), case.refer([tensor.double() for tensor in inputs])
    touched = ~expected.isfinite()
    assert torch.equal(~got.isfinite(), touched)
    torch.testing.assert_close(got[~touched].double(), expected[~touched], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", _VALUES[:2])
@pytest.mark.parametrize("causal", [True, False])
def test_nan_among_the_chunks(causal: bool, value: float) -> None:
    """A bad value shows in everything that sees it, and stays out of other heads and of earlier chunks."""
    q, k, v = (torch.randn(1, 200, 2, 8) for _ in range(3))
    v[0, 150, 0, 3] = value
    out = ops.linear_attention(q, k, v, causal=causal, decay=torch.tensor([0.99, 0.99]))
    assert out[0, :, 1].isfinite().all()
    assert not out[0, 150:, 0, 3].isfinite().any()
    if causal:
        assert out[0, :128].isfinite().all()
    else:
        assert not out[0, :, 0, 3].isfinite().any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["k", "v"])
def test_nan_in_wkv_stays_in_its_channel(which: str, value: float) -> None:
    k, v = torch.randn(2, 70, 5), torch.randn(2, 70, 5)
    (k if which == "k" else v)[0, 40, 3] = value
    out = ops.wkv(k, v, torch.rand(5), torch.rand(5))
    assert not out[0, :, 3].isfinite().any()
    assert out[:, :, :3].isfinite().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, *checks.HALF_AND_FLOAT], ids=str)
@pytest.mark.parametrize("value", _VALUES)
def test_nan_in_shift_mix_reaches_neighbours(value: float, dtype: torch.dtype) -> None:
    checks.nan_in_shift_mix_reaches_neighbours(checks.Device("cpu", ops, tokens=0), value, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, *checks.HALF_AND_FLOAT], ids=str)
def test_layer_norm_at_the_edge(dtype: torch.dtype) -> None:
    device = checks.Device("cpu", ops, tokens=0)
    if dtype != torch.float64:
        checks.wide_parameters(device, dtype)
    for value in checks.VALUES:
        checks.nan_stays_in_its_token(device, value, dtype)


def test_layer_norm_keeps_the_digits_behind_a_large_mean() -> None:
    x = 1000 + torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, parameters = x.float(), (torch.ones(96), torch.zeros(96))
    exact = reference.layer_norm(x.double(), *(tensor.double() for tensor in parameters))
    torch.testing.assert_close(ops.layer_norm(x, *parameters).double(), exact, rtol=0, atol=3e-4)


def test_shift_mix_of_whole_shares_rounds_nothing() -> None:
    """A share of 1 is the token itself to the last bit, and a share of 0 its neighbours."""
    x = torch.randn(1, 6, 7, 32)
    own, others = ops.shift_mix(x, torch.tensor([[1.0], [0.0]]).expand(2, 32))
    assert torch.equal(own, x)
    assert torch.equal(others[0, :, 1:, :8], x[0, :, :-1, :8])
    assert torch.equal(others[0, :-1, :, 24:], x[0, 1:, :, 24:])
    assert not others[0, 0, :, 16:24].any()


@pytest.mark.parametrize("dtype", [torch.float64, *checks.HALF_AND_FLOAT], ids=str)
@pytest.mark.parametrize("value", _VALUES)
def test_nan_in_channel_mix_stays_with_its_token(value: float, dtype: torch.dtype) -> None:
    inputs = Case("channel_mix", (2, 70, 10, 140)).inputs(dtype)
    clean = ops.channel_mix(*inputs)
    for tokens in (0, 1):
        bad = [tensor.clone() for tensor in inputs]
        bad[tokens][1, 66, 3] = value
        leaves = [tensor.requires_grad_() for tensor in bad]
        out = ops.channel_mix(*leaves)
        expected = reference.channel_mix(*leaves)
        assert torch.equal(out[1, 66].isfinite(), expected[1, 66].isfinite())
        others = torch.ones(2, 70, dtype=torch.bool)
        others[1, 66] = False
        assert torch.equal(out[others], clean[others])
        grad_k, grad_r = torch.autograd.grad(out, leaves[:2], torch.ones_like(out))
        assert grad_k[others].isfinite().all()
        assert grad_r[others].isfinite().all()


def test_keys_of_minus_infinity_are_ignored_by_wkv() -> None:
    k, v, decay, bonus = torch.randn(1, 70, 5), torch.randn(1, 70, 5), torch.rand(5), torch.rand(5)
    k[0, 32:64] = float("-inf")
    expected = reference.wkv(k.double(), v.double(), decay.double(), bonus.double())
    torch.testing.assert_close(ops.wkv(k, v, decay, bonus).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"causal": True}, {"decay": 0.9}], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_zero_normaliser_gives_zero(dtype: torch.dtype, eps: float, kind: dict) -> None:
    """ReLU features of negative numbers: numerator and normaliser are both 0."""
    q = -torch.rand(1, 70, 2, 8).to(dtype) - 1
    k, v = torch.randn(1, 70, 2, 8).to(dtype), torch.randn(1, 70, 2, 8).to(dtype)
    q, k, v = (tensor.requires_grad_() for tensor in (q, k, v))
    kind = dict(kind)
    if "decay" in kind:
        kind["decay"] = torch.full((2,), 0.9, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    out = ops.linear_attention(q, k, v, feature_map="relu", eps=eps, **kind)
    assert not out.any()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [{}, {"decay": 1.0}, {"causal": True}], ids=str)
def test_half_precision_does_not_overflow_over_65536_tokens(dtype: torch.dtype, kind: dict) -> None:
    """The sum of 65,536 features passes 65,504, the largest float16, many times over."""
    tokens = 65536
    q, k = torch.full((1, tokens, 1, 8), 2.0, dtype=dtype), torch.full((1, tokens, 1, 8), 2.0, dtype=dtype)
    v = torch.ones(1, tokens, 1, 4, dtype=dtype)
    kind = {key: torch.full((1,), value) if key == "decay" else value for key, value in kind.items()}
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = ops.linear_attention(*inputs, **kind)
    # a weighted mean of ones
    torch.testing.assert_close(out.float(), torch.ones_like(out, dtype=torch.float32), rtol=2e-3, atol=0)
    for grad in torch.autograd.grad(out.float().mean(), inputs):
        assert grad.isfinite().all()


@pytest.mark.parametrize("kind", ["one state", "chunks"])
def test_sums_over_65536_tokens_are_as_exact_as_those_of_pytorch(kind: str) -> None:
    """Added to a long sum one by one, every token would be rounded at the size of the whole."""
    generator = torch.Generator().manual_seed(0)
    inputs = [1 + torch.randn(1, 65536, 1, 16, generator=generator) for _ in range(3)]
    grad = torch.randn(1, 65536, 1, 16, generator=generator)
    options = {} if kind == "one state" else {"decay": torch.ones(1)}

    def by_states(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k = reference.feature(q, "elu1"), reference.feature(k, "elu1")
        numerator = torch.einsum("bnhd,bhdv->bnhv", q, torch.einsum("bmhd,bmhv->bhdv", k, v))
        return numerator / (torch.einsum("bnhd,bhd->bnh", q, k.sum(1)) + 1e-6)[..., None]

    def both_ways(function, dtype: torch.dtype) -> list[torch.Tensor]:
        tensors = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        out = function(*tensors)
        return [out.detach(), *torch.autograd.grad(out, tensors, grad.to(dtype))]

    got = both_ways(lambda *tensors: ops.linear_attention(*tensors, **options), torch.float32)
    plain, exact = both_ways(by_states, torch.float32), both_ways(by_states, torch.float64)
    check_close("out", got[:1], plain[:1], exact[:1], torch.float32)
    # a state that is read at every chunk can't be summed up in another order, and a gradient that cancels shows it
    if kind == "one state":
        check_close("grad", got[1:], plain[1:], exact[1:], torch.float32)


def test_wkv_over_many_tokens_is_a_mean() -> None:
    k, v = torch.full((1, 100_000, 3), 5.0), torch.ones(1, 100_000, 3)
    out = ops.wkv(k, v, torch.zeros(3), torch.zeros(3))
    torch.testing.assert_close(out, torch.ones_like(out), rtol=1e-5, atol=0)


def test_wkv_learns_where_keys_lie_far_apart() -> None:
    wkv_learns_where_keys_lie_far_apart(checks.Device("cpu", ops, tokens=0))


def test_wkv_forgets_at_the_right_rate_over_many_tokens() -> None:
    """A rounding of e^(−decay) would be raised to a power of thousands; sampled rows against their definition."""
    tokens, channels = 20_000, 4
    k, v = torch.randn(1, tokens, channels), torch.randn(1, tokens, channels)
    decay, bonus = torch.tensor([0.1, 1.0, 3.0, 30.0]), torch.zeros(channels)
    rows = torch.arange(0, tokens, 997)
    distance = (rows[:, None] - torch.arange(tokens)).abs() - 1

    def sampled(dtype: torch.dtype) -> torch.Tensor:
        logs = k[0].to(dtype) - distance[:, :, None].clamp(min=0) * (decay / tokens).to(dtype)
        return (logs.softmax(1) * v[0].to(dtype)).sum(1)

    got = ops.wkv(k, v, decay, bonus)[0, rows]
    check_close("wkv", [got], [sampled(torch.float32)], [sampled(torch.float64)], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_scores_do_not_overflow_the_softmax(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 130, 1, 16).to(dtype) for _ in range(3))
    out = ops.softmax_attention(q, k, v, scale=500.0)
    expected = reference.softmax_attention(q.double(), k.double(), v.double(), scale=500.0)
    assert out.isfinite().all()
    # scores near 10⁴ carry roundings near 10⁻³ into the exponent
    torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.05)


def test_a_score_of_minus_infinity_hides_its_key() -> None:
    """Also when a whole block of keys, the first one, is hidden."""
    q = torch.ones(1, 3, 1, 4)
    k, v = torch.randn(1, 300, 1, 4), torch.randn(1, 300, 1, 4)
    k[0, :200, 0, 0] = float("-inf")
    torch.testing.assert_close(ops.softmax_attention(q, k, v), ops.softmax_attention(q, k[:, 200:], v[:, 200:]))


def test_causal_softmax_is_the_same_for_a_prefix() -> None:
    """A query's output depends on nothing that comes after it."""
    q, k, v = (torch.randn(1, 300, 2, 16) for _ in range(3))
    whole = ops.softmax_attention(q, k, v, causal=True)
    part = ops.softmax_attention(q[:, :150], k[:, :150], v[:, :150], causal=True)
    torch.testing.assert_close(whole[:, :150], part)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float64, 1e10), (torch.float32, 1e4), (torch.float32, 1e6), (torch.bfloat16, 1e15), (torch.float16, 1e4)],
    ids=str,
)
def test_scores_so_large_that_one_key_has_all_weight(dtype: torch.dtype, size: float) -> None:
    """Its weight is 1 forward and backward, although a rounding of such a score may be larger than any exponent."""
    generator = torch.Generator().manual_seed(0)
    q, k = ((torch.randn(1, 70, 2, 64, generator=generator, dtype=torch.float64) * size).to(dtype) for _ in range(2))
    v = torch.randn(1, 70, 2, 64, generator=generator, dtype=torch.float64).to(dtype)
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = ops.softmax_attention(*leaves)
    gradients = torch.autograd.grad(out, leaves, torch.ones_like(out))
    first = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()).argmax(-1)
    weights = torch.nn.functional.one_hot(first, 70).double()
    torch.testing.assert_close(out.double(), torch.einsum("bhnm,bmhv->bnhv", weights, v.double()), rtol=0, atol=1e-6)
    seen = weights.sum(2).transpose(1, 2)[..., None].expand(gradients[2].shape)
    torch.testing.assert_close(gradients[2].double(), seen, rtol=0, atol=1e-6)
    assert all(gradient.isfinite().all() for gradient in gradients)
