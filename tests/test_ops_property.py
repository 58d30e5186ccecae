"""Properties that hold for every shape and option, over inputs that hypothesis draws."""

from dataclasses import replace

import torch
from against_reference import agrees
from cases import Case
from hypothesis import given, settings
from hypothesis import strategies as st

from sola_vision import ops

_SETTINGS = settings(max_examples=40)
_TOKENS = st.integers(1, 200)
_HEADS = st.integers(1, 3)
_DIM = st.integers(1, 72)
# batch, queries, keys, heads, head dim, value dim
_SHAPE = st.tuples(st.integers(1, 2), _TOKENS, _TOKENS, _HEADS, _DIM, _DIM)
_DTYPE = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


# the policy compares the largest errors of two tensors, which says little when they hold a few numbers that cancel
_FEWEST_NUMBERS = 64


def _check(case: Case, dtype: torch.dtype) -> None:
    tokens = [tensor for tensor in case.inputs(dtype)[: case.token_inputs] if tensor.dim() > 2]
    numbers = min(tensor.numel() // case.sizes[0] for tensor in tokens)
    case = replace(case, sizes=(max(case.sizes[0], -(-_FEWEST_NUMBERS // numbers)), *case.sizes[1:]))
    agrees(case, dtype)


@_SETTINGS
@given(_SHAPE, st.booleans(), _DTYPE)
def test_softmax_of_any_shape(shape, causal, dtype) -> None:
    _check(Case("softmax_attention", shape, (("causal", causal),)), dtype)


@_SETTINGS
@given(_SHAPE, st.sampled_from(["elu1", "relu"]), st.booleans(), _DTYPE)
def test_linear_of_any_shape(shape, feature_map, normalize, dtype) -> None:
    _check(Case("linear_attention", shape, (("feature_map", feature_map), ("normalize", normalize))), dtype)


@_SETTINGS
@given(st.integers(1, 2), _TOKENS, _HEADS, _DIM, _DIM, st.booleans(), st.sampled_from([None, 0.9, 0.999]), _DTYPE)
def test_chunks_of_any_shape(batch, tokens, heads, dim, value_dim, causal, decay, dtype) -> None:
    options = (("causal", causal or decay is None),)
    _check(Case("linear_attention", (batch, tokens, tokens, heads, dim, value_dim), options, decay=decay), dtype)


@_SETTINGS
@given(st.integers(1, 2), _TOKENS, st.integers(1, 80), st.floats(-3, 30), st.floats(-5, 5), _DTYPE)
def test_wkv_of_any_shape(batch, tokens, channels, rate, bonus, dtype) -> None:
    # a decay below zero grows with distance: keep the largest log-weight, |rate|·N, within what float16 sums can tell
    rate = rate if rate >= 0 else rate / tokens
    options = (("decay_per", "token"),)
    _check(Case("wkv", (batch, tokens, channels), options, rate=rate, bonus=bonus), dtype)


@_SETTINGS
@given(st.integers(1, 2), st.integers(1, 20), st.integers(1, 20), st.integers(1, 150), st.integers(1, 8), _DTYPE)
def test_shift_mix_of_any_shape(batch, rows, columns, channels, mixes, dtype) -> None:
    _check(Case("shift_mix", (batch, rows, columns, channels, mixes)), dtype)


@_SETTINGS
@given(st.integers(1, 2), _TOKENS, st.integers(2, 300), _DTYPE)
def test_layer_norm_of_any_shape(batch, tokens, channels, dtype) -> None:
    _check(Case("layer_norm", (batch, tokens, channels)), dtype)


@_SETTINGS
@given(st.integers(1, 2), _TOKENS, st.integers(8, 150), st.integers(8, 300), _DTYPE)
def test_channel_mix_of_any_shape(batch, tokens, channels, hidden, dtype) -> None:
    _check(Case("channel_mix", (batch, tokens, channels, hidden)), dtype)


@_SETTINGS
@given(_TOKENS, st.integers(1, 256), _DIM, st.booleans())
def test_the_length_of_chunks_does_not_matter(tokens, chunk, dim, causal) -> None:
    q, k, v = (torch.randn(1, tokens, 2, dim, dtype=torch.float64) for _ in range(3))
    decay = torch.tensor([0.9, 0.99], dtype=torch.float64)
    arguments = (q, k, v, decay, "elu1", causal, True, 1e-6)
    chunked = torch.ops.sola.chunked_linear_attention.default
    torch.testing.assert_close(chunked(*arguments, chunk)[0], chunked(*arguments, 64)[0], rtol=1e-10, atol=1e-12)


@_SETTINGS
@given(_TOKENS, _DIM, st.integers(0, 10_000))
def test_attention_ignores_the_order_of_keys(tokens, dim, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, tokens, 1, dim, generator=generator, dtype=torch.float64) for _ in range(3))
    order = torch.randperm(tokens, generator=generator)
    for op in (ops.softmax_attention, ops.linear_attention):
        torch.testing.assert_close(op(q, k[:, order], v[:, order]), op(q, k, v), rtol=1e-9, atol=1e-11)


@_SETTINGS
@given(_TOKENS, st.integers(1, 40), st.floats(-2, 5))
def test_wkv_mirrors(tokens, channels, rate) -> None:
    """Reading the sequence backwards gives the outputs backwards."""
    k, v = (torch.randn(1, tokens, channels, dtype=torch.float64) for _ in range(2))
    decay, bonus = torch.full((channels,), rate, dtype=torch.float64), torch.rand(channels, dtype=torch.float64)
    there = ops.wkv(k, v, decay, bonus)
    back = ops.wkv(k.flip(1), v.flip(1), decay, bonus).flip(1)
    torch.testing.assert_close(there, back, rtol=1e-10, atol=1e-12)


@_SETTINGS
@given(_TOKENS, _DIM, st.floats(0.1, 10))
def test_values_pass_through_linearly(tokens, dim, factor) -> None:
    q, k, v = (torch.randn(1, tokens, 1, dim, dtype=torch.float64) for _ in range(3))
    for op in (ops.softmax_attention, ops.linear_attention):
        torch.testing.assert_close(op(q, k, factor * v), factor * op(q, k, v), rtol=1e-10, atol=1e-12)
