"""Long short-term memory on the meta device as the CPU runs it.

There one call of oneDNN computes all steps of a layer in one direction (torch 2.13, ``mkldnn_rnn`` in
aten/src/ATen/native/mkldnn/RNN.cpp). In training it keeps a workspace for its gradient, whose parts are those of
``rnn_utils.cpp`` in oneDNN. Tensors without data take the steps one by one, with Python's operators for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import _VF, Tensor
from torch.nn import functional as F

_PAGE = 4096


@contextmanager
def cpu_lstm() -> Iterator[None]:
    """``nn.LSTM`` on meta takes the route that it would take on the CPU."""
    functions: Any = _VF
    original: Callable[..., Any] = functions.lstm

    def lstm(*args: Any) -> Any:
        return _lstm(*args) if _is_layerwise(*args) else original(*args)

    functions.lstm = lstm
    try:
        yield
    finally:
        del functions.lstm


def _is_layerwise(x: Tensor, state: Any, weights: Any, has_biases: Any, *rest: Any) -> bool:
    """The rule of PyTorch for single precision and sequences of one length, without projections, in training."""
    if isinstance(state, Tensor) or not (x.is_meta and x.dtype == torch.float32 and x.dim() == 3 and x.numel() > 0):
        return False
    _layers, _dropout, train, *_ = rest
    plain = state[0].size(2) == state[1].size(2) and len(weights) % (4 if has_biases else 2) == 0
    return bool(train) and plain and torch.backends.mkldnn.is_available()


def _lstm(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], has_biases: Any, *rest: Any) -> Any:
    layers, dropout, _train, bidirectional, batch_first = rest
    x = (x.transpose(0, 1) if batch_first else x).contiguous()
    directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
    hidden, cells = [], []
    for layer in range(layers):
        results = []
        for place in range(layer * directions, (layer + 1) * directions):
            own = weights[place * each : (place + 1) * each]
            result, h, c = _Layer.apply(x, state[0][place], state[1][place], *own)  # type: ignore[no-untyped-call]
            results.append(result)
            hidden.append(h)
            cells.append(c)
        x = torch.cat(results, -1) if bidirectional else results[0]
        if dropout and layer < layers - 1:
            x = F.dropout(x, dropout)
    return x.transpose(0, 1) if batch_first else x, torch.stack(hidden), torch.stack(cells)


class _Layer(torch.autograd.Function):
    """All steps of a layer in one direction: T steps, B sequences, I inputs, H hidden units."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        width = operands[0].size(1)
        out, h, c = (x.new_empty((*sizes, width)) for sizes in (x.shape[:2], x.shape[1:2], x.shape[1:2]))
        kept = x.new_empty(_kept_bytes(x, width), dtype=torch.uint8)
        _weights_and_gates(x, *operands[2:4])
        ctx.save_for_backward(x, *operands, out, h, c, kept)
        return out, h, c

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        operands = ctx.saved_tensors[:-4]
        dense = [grad.contiguous() for grad in grads]
        found = tuple(torch.empty_like(operand) for operand in operands)
        blocked = [torch.empty_like(weight) for weight in operands[3:5]]
        _weights_and_gates(operands[0], *operands[3:5])
        del dense, blocked
        return found


def _weights_and_gates(x: Tensor, *weights: Tensor) -> None:
    """Hold for a moment the weights as oneDNN multiplies with them, and the gates of all steps before they are opened."""
    held = [torch.empty_like(weight) for weight in weights]
    held.append(x.new_empty(x.size(0), x.size(1), _padded(weights[0].size(0))))


def _kept_bytes(x: Tensor, width: int) -> int:
    """Gates and results of every step, and states with their gradients before and behind every step and layer."""
    steps, batch, inputs = x.shape
    gates, result, wide = (_padded(size) for size in (4 * width, width, max(inputs, width)))
    a_step, a_state = steps * batch, 2 * (steps + 1) * batch
    parts = (a_step * gates, a_step * result, *[a_state * wide] * 3, *[a_state * result] * 2)
    return sum(-(-4 * part // _PAGE) * _PAGE for part in parts)


def _padded(size: int) -> int:
    """Whole vectors of 64 bytes, a row of which isn't a multiple of 256 numbers."""
    size = -(-size // 16) * 16
    return size + 16 if size % 256 == 0 else size
