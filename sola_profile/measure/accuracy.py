"""How far a route is from float64, on a sample of query tokens, so that it is cheap at any N.

The loss whose gradients are compared is a weighted sum over the sampled tokens alone, so these gradients have exact
values that a few rows of the N × N weights give.
"""

# B batch, N tokens, R sampled tokens, H heads, D head dim, V value head dim, C channels

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sola_profile.kernel_case import BOTH, CHANNEL_MIX, LAYER_NORM, SHIFT_MIX, WKV, KernelCase
from sola_profile.kernel_workload import Inputs
from sola_profile.peers.table import Function, Result
from sola_profile.workload import SEED
from sola_vision.ops.layer_norm import EPS

# weights of the sample at most, in float64 with a few copies for the gradients
MOST_WEIGHTS = 2**22
MOST_ROWS, FEWEST_ROWS = 64, 4
MOST_CHANNELS = 16
CANCELLED = 1e-3


@dataclass(frozen=True)
class Sampled:
    """The sampled tokens, the channels (some of WKV, else all), and exact values in float64.

    ``exact``: the output ``(B, R, …)`` at the sampled tokens, then with a backward the gradients of all inputs.
    ``weights``: the gradient of the loss at the sampled tokens, zero elsewhere.
    """

    case: KernelCase
    rows: Tensor
    channels: Tensor | None
    weights: Tensor
    exact: tuple[Tensor, ...]

    def error(self, function: Function, inputs: Inputs) -> float:
        """The largest deviation over the largest exact magnitude; the worst of output and gradients.

        A gradient whose terms cancel has rounding errors of the size of its terms, not of its own; one below a
        thousandth of the largest of all counts as that large.
        """
        found = self._narrowed(_run(self.case, function, inputs, self.weights))
        got = (found[0].index_select(1, self.rows), *found[1:])
        scales = [exact.abs().max().item() for exact in self.exact]
        floor = max(scales) * CANCELLED or 1.0
        deviations = [(x.double() - exact).abs().max().item() for x, exact in zip(got, self.exact, strict=True)]
        return max(deviation / max(scale, floor) for deviation, scale in zip(deviations, scales, strict=True))

    def _narrowed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [x if self.channels is None else x.index_select(-1, self.channels) for x in tensors]


def sample(case: KernelCase, inputs: Inputs) -> Sampled:
    """Choose tokens, spread over all of them with the first and the last, and compute what is exact there."""
    shape = case.shape
    channels = None
    if case.op == WKV and shape.dim > MOST_CHANNELS:
        channels = _spread(shape.dim, MOST_CHANNELS)
    per_row = shape.batch * shape.heads * shape.tokens * (min(shape.dim, MOST_CHANNELS) if case.op == WKV else 1)
    rows = _spread(shape.tokens, max(FEWEST_ROWS, min(MOST_ROWS, MOST_WEIGHTS // per_row)))
    tail = _result_tail(case, inputs)
    generator = torch.Generator().manual_seed(SEED + 1)
    weights = torch.zeros((shape.batch, shape.tokens, *tail), dtype=inputs[0].dtype)
    weights[:, rows] = torch.randn((shape.batch, len(rows), *tail), generator=generator).to(weights.dtype)
    wide = [x if channels is None else x.index_select(-1, channels) for x in (*inputs, weights)]
    *narrow, upstream = (x.double() for x in wide)

    def exact(*args: Tensor) -> Tensor:
        return exact_rows(case.op, args, rows)

    return Sampled(case, rows, channels, weights, _run(case, exact, tuple(narrow), upstream[:, rows]))


def _result_tail(case: KernelCase, inputs: Inputs) -> tuple[int, ...]:
    """What follows ``(B, N, …)`` in a result; mixes lie side by side."""
    if case.op == SHIFT_MIX:
        return (inputs[1].numel(),)
    return tuple(inputs[0 if case.op in (WKV, LAYER_NORM, CHANNEL_MIX) else 2].shape[2:])


def joined(result: Result) -> Tensor:
    """A result as one tensor ``(B, N, …)``, mixes side by side."""
    if isinstance(result, Tensor):
        return result
    return torch.cat([mix.flatten(1, 2) for mix in result], -1)


def exact_rows(op: str, inputs: Sequence[Tensor], rows: Tensor) -> Tensor:
    """The operator's definition at some tokens, in the dtype of the inputs; ``(B, R, …)``."""
    if op == WKV:
        k, v, decay, bonus = inputs
        distance = (rows[:, None] - torch.arange(k.size(1))).abs()[..., None]
        logits = torch.where(distance == 0, bonus, -(distance - 1) * decay / k.size(1)) + k[:, None]
        return (torch.softmax(logits, 2) * v[:, None]).sum(2)
    if op == SHIFT_MIX:
        return _exact_mixes(inputs[0], inputs[1], rows)
    if op == LAYER_NORM:
        x, weight, bias = inputs
        distance = x[:, rows] - x[:, rows].mean(2, keepdim=True)
        return distance * (distance.square().mean(2, keepdim=True) + EPS) ** -0.5 * weight + bias
    if op == CHANNEL_MIX:
        x_k, x_r, key, value, receptance = inputs
        hidden = (x_k[:, rows] @ key.T).clamp(min=0) ** 2
        return torch.sigmoid(x_r[:, rows] @ receptance.T) * (hidden @ value.T)
    q, k, v, *decay_of_heads = inputs
    if op == "softmax_attention":
        weights = torch.einsum("brhd,bmhd->bhrm", q[:, rows] * float(q.size(-1)) ** -0.5, k).softmax(-1)
        return torch.einsum("bhrm,bmhv->brhv", weights, v)
    weights = torch.einsum("brhd,bmhd->bhrm", F.elu(q[:, rows]) + 1, F.elu(k) + 1)
    if decay_of_heads:
        distance = rows[:, None] - torch.arange(k.size(1))
        weights = weights * decay_of_heads[0][:, None, None] ** distance.abs()
        if op.startswith("causal"):
            weights = weights.masked_fill(distance < 0, 0)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    return torch.einsum("bhrm,bmhv->brhv", weights, v)


def _exact_mixes(x: Tensor, ratios: Tensor, rows: Tensor) -> Tensor:
    height, width, channels = x.shape[1:]
    row, column, group = rows // width, rows % width, channels // 4
    tokens = torch.cat((x.flatten(1, 2), x.new_zeros(x.size(0), 1, channels)), 1)
    parts = []
    for number, (down, right) in enumerate(((0, -1), (0, 1), (-1, 0), (1, 0))):
        r, c = row + down, column + right
        exists = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        # the last one is the zeros beyond the edge
        source = torch.where(exists, r * width + c, height * width)
        parts.append(tokens[:, source, number * group : (number + 1) * group])
    own = tokens[:, rows]
    shifted = torch.cat((*parts, own[..., 4 * group :]), -1)
    return torch.cat([ratio * own + (1 - ratio) * shifted for ratio in ratios], -1)


def _run(case: KernelCase, function: Function, inputs: Inputs, upstream: Tensor) -> tuple[Tensor, ...]:
    """Output, and with a backward the gradients of all inputs."""
    if case.mode != BOTH:
        with torch.inference_mode():
            return (joined(function(*inputs)),)
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    out = joined(function(*leaves))
    return (out.detach(), *torch.autograd.grad(out, leaves, upstream, materialize_grads=True))


def _spread(size: int, count: int) -> Tensor:
    """Up to ``count`` places in ``range(size)``, the first and the last among them, each once."""
    steps = min(size, count)
    # in float64 the last one is exact, and rounding never makes two of one
    return torch.linspace(0, size - 1, steps, dtype=torch.float64).round().long()
