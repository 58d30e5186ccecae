"""Linear attention: one global state, or chunked states with decay and causality; O(N) time and memory."""

# B batch, N queries, M keys, H heads, D head dim, V value head dim, C chunk

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sola_vision.ops._batched import examples_as_batch, examples_in_turn
from sola_vision.ops._checks import accumulate_dtype, check_attention, check_vector, number, require, require_tensors
from sola_vision.ops._transforms import lowered, under_transforms

OP = "linear_attention"
FEATURE_MAPS = ("elu1", "relu", "identity", "exp")

# tokens whose pairs are multiplied out before the state takes over; the executed cost depends on it
CHUNK = 64


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "elu1",
    decay: Tensor | None = None,
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """Linear attention, bidirectional or causal, with or without decay.

    ``out_i = Σ_j w_ij φ(q_i)·φ(k_j) v_j / (Σ_j w_ij φ(q_i)·φ(k_j) + eps)``, ``w_ij = decay_h^|i−j|`` (1 without
    decay), ``j ≤ i`` when ``causal``; without the denominator when ``normalize`` is False. Where the denominator is
    zero the output is 0.

    Without decay and not causal there is one global state ``S = Σ_j φ(k_j)ᵀ v_j``. Otherwise pairs are multiplied
    out within chunks of tokens and a state is carried across them, in both directions unless ``causal``.

    Args:
        q: ``(B, N, H, D)``, float64 (CPU), float32, bfloat16 or float16; any strides, last dimension contiguous.
        k: ``(B, M, H, D)``; with decay or causal M must be N.
        v: ``(B, M, H, V)``; D and V are 1 to 256.
        feature_map: ``elu1`` (ELU + 1), ``relu``, ``identity`` or ``exp``; fused into the kernel.
        decay: ``(H,)``, each in (0, 1]; differentiable. None means 1.
        causal: query i sees keys 0…i only.
        normalize: divide by the sum of the weights.
        eps: added to that sum.

    Returns:
        ``(B, N, H, V)`` in the dtype of ``q``; products, normaliser and state are accumulated in float32 (float64
        for float64).

    Raises:
        TypeError: names the argument that is no tensor, or no number.
        ValueError: names the argument, what came and what is allowed.

    Source: Katharopoulos et al., arXiv 2006.16236; decay and chunks as in RetNet, arXiv 2307.08621. Derivation:
    ``docs/math.md``.

    """
    require_tensors(OP, q=q, k=k, v=v)
    if decay is not None:
        require_tensors(OP, decay=decay)
    eps = number(OP, "eps", eps, "call eps.item() first")
    _check_feature_map(feature_map)
    if decay is None and not causal:
        out: Tensor = _linear_attention(q, k, v, feature_map, normalize, eps)[0]
    else:
        out = _chunked_linear_attention(q, k, v, decay, feature_map, causal, normalize, eps, CHUNK)[0]
    return out


def macs(batch: Any, queries: Any, keys: Any, heads: Any, dim: Any, value_dim: Any) -> Any:
    """Multiply-accumulates with one global state: the state and the read-out, ``B·H·(M + N)·D·V``."""
    return batch * heads * (queries + keys) * dim * value_dim


def chunked_macs(
    batch: Any, tokens: Any, heads: Any, dim: Any, value_dim: Any, *, causal: bool = False, chunk: int = CHUNK
) -> Any:
    """Multiply-accumulates executed by the chunked form.

    Within chunks ``Σ L²·(D + V)`` over chunk lengths L (masked pairs of a causal chunk are multiplied too); across
    chunks, per direction, ``D·V`` for every token that reads a state and for every token that feeds one.
    """
    last = _last_chunk(tokens, chunk)
    within = (tokens - last) * chunk + last * last
    across = (tokens - min(chunk, tokens)) + (tokens - last) if isinstance(tokens, int) else 2 * (tokens - chunk)
    directions = 1 if causal else 2
    return batch * heads * (within * (dim + value_dim) + directions * across * dim * value_dim)


def chunked_backward_macs(
    batch: Any, tokens: Any, heads: Any, dim: Any, value_dim: Any, *, causal: bool = False, chunk: int = CHUNK
) -> Any:
    """Multiply-accumulates executed by the backward of the chunked form.

    Within chunks five products, ``Σ L²·(3D + 2V)``; across chunks, per direction, one read for dq and two for dk and
    dv, and the states of keys and gradients are fed again: five times ``D·V`` per token where the forward has two.
    """
    last = _last_chunk(tokens, chunk)
    within = (tokens - last) * chunk + last * last
    after_first = tokens - (min(chunk, tokens) if isinstance(tokens, int) else chunk)
    before_last = tokens - last
    # causal: dq reads and gradients feed after the first chunk, dk and dv read and keys feed before the last
    across = 2 * after_first + 3 * before_last
    if not causal:
        across += 3 * after_first + 2 * before_last
    return batch * heads * (within * (3 * dim + 2 * value_dim) + across * dim * value_dim)


def dense_macs(batch: Any, tokens: Any, heads: Any, dim: Any, value_dim: Any) -> Any:
    """The same result multiplied out over all pairs, ``B·H·N²·(D + V)``."""
    return batch * heads * tokens * tokens * (dim + value_dim)


def _last_chunk(tokens: Any, chunk: int) -> Any:
    """Length of the last chunk; for a symbolic number of tokens, the sizes that fill whole chunks are meant."""
    if not isinstance(tokens, int):
        return chunk
    return tokens - (max(tokens, 1) - 1) // chunk * chunk


def _check_feature_map(feature_map: str) -> None:
    # at every call, so that the sentence is made only where it is said
    if feature_map not in FEATURE_MAPS:
        require(False, OP, "feature_map", f"be one of {', '.join(FEATURE_MAPS)}", feature_map)


@torch.library.register_fake("sola::linear_attention")
def _(q: Tensor, k: Tensor, v: Tensor, feature_map: str, normalize: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    check_attention(OP, q, k, v)
    _check_feature_map(feature_map)
    batch, queries, heads, dim = q.shape
    out = q.new_empty((batch, queries, heads, v.size(3)))
    state = q.new_empty((batch, heads, dim, v.size(3)), dtype=accumulate_dtype(q))
    return out, state, q.new_empty((batch, heads, dim), dtype=accumulate_dtype(q))


@torch.library.register_fake("sola::linear_attention_backward")
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    key_sum: Tensor,
    feature_map: str,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _check_chunked(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, feature_map: str, chunk: int) -> None:
    check_attention(OP, q, k, v)
    _check_feature_map(feature_map)
    tokens = q.size(1)
    require(k.size(1) == tokens, OP, "k", f"have as many tokens as q with decay or causal, {tokens}", k.size(1))
    require(1 <= chunk <= 256, OP, "chunk", "be 1 to 256", chunk)
    if decay is not None:
        check_vector(OP, "decay", decay, "H", q.size(2), q)


@torch.library.register_fake("sola::chunked_linear_attention")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    feature_map: str,
    causal: bool,
    normalize: bool,
    eps: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    _check_chunked(q, k, v, decay, feature_map, chunk)
    batch, tokens, heads, _dim = q.shape
    normaliser = q.new_empty((batch, heads, tokens if normalize else 0), dtype=accumulate_dtype(q))
    return q.new_empty((batch, tokens, heads, v.size(3))), normaliser


@torch.library.register_fake("sola::chunked_linear_attention_backward")
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    out: Tensor,
    normaliser: Tensor,
    feature_map: str,
    causal: bool,
    normalize: bool,
    eps: float,
    chunk: int,
    decay_grad: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    heads = decay.size(0) if decay is not None and decay_grad else 0
    grad_decay = q.new_empty((heads,), dtype=accumulate_dtype(q))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), grad_decay


@register_flop_formula(torch.ops.sola.linear_attention)
def _flops(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
    return 2 * macs(q[0], q[1], k[1], q[2], q[3], v[3])


@register_flop_formula(torch.ops.sola.linear_attention_backward)
def _backward_flops(grad_out: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
    # dO Sᵀ and dS over the queries, v dSᵀ and φ(k) dS over the keys: four products where the forward has two
    return 4 * macs(q[0], q[1], k[1], q[2], q[3], v[3])


@register_flop_formula(torch.ops.sola.chunked_linear_attention)
def _chunked_flops(
    q: Any, k: Any, v: Any, decay: Any, feature_map: str, causal: bool, *args: Any, **kwargs: Any
) -> Any:
    chunk = kwargs.get("chunk", args[2] if len(args) > 2 else CHUNK)
    return 2 * chunked_macs(q[0], q[1], q[2], q[3], v[3], causal=causal, chunk=chunk)


@register_flop_formula(torch.ops.sola.chunked_linear_attention_backward)
def _chunked_backward_flops(
    grad_out: Any,
    q: Any,
    k: Any,
    v: Any,
    decay: Any,
    out: Any,
    normaliser: Any,
    feature_map: str,
    causal: bool,
    *args: Any,
    **kwargs: Any,
) -> Any:
    chunk = kwargs.get("chunk", args[2] if len(args) > 2 else CHUNK)
    return 2 * chunked_backward_macs(q[0], q[1], q[2], q[3], v[3], causal=causal, chunk=chunk)


examples_as_batch("linear_attention", tokens=3, batch_dims=(0, 0, 0))
examples_as_batch("chunked_linear_attention", tokens=3, batch_dims=(0, 0))
examples_as_batch("linear_attention_backward", tokens=6, batch_dims=(0, 0, 0))
examples_in_turn("chunked_linear_attention_backward")
_linear_attention = under_transforms("linear_attention", lowered(3))
_chunked_linear_attention = under_transforms("chunked_linear_attention", lowered(3))
