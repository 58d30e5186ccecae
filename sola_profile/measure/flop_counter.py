"""The second witness: PyTorch's ``FlopCounterMode`` on the meta device.

On meta it sees fused attention that it misses on CPU tensors, and it needs neither memory nor arithmetic. It counts 2
FLOPs per multiply-accumulate. It is silent about operators without a formula; ``_Coverage`` lists them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sola_profile.case import Resolution
from sola_profile.measure.counts import Count, uncounted
from sola_profile.pieces import piece_modules
from sola_profile.running_modules import RunningModules
from sola_profile.workload import Step, Workload

NAME = "FlopCounterMode"


def count_forward(workload: Workload, resolution: Resolution) -> Count:
    """Matrix products of a forward pass of a ``meta`` workload, one batch, in total and by piece."""
    image = workload.image(resolution)
    place = workload.place(image)

    def forward() -> None:
        with torch.no_grad(), place:
            workload.model(image)

    # the counter starts every path with the class of the module that was called
    root = type(workload.model).__name__
    return count_step(forward, {piece.name: f"{root}.{piece.path}" for piece in piece_modules(workload.source.spec)})


def count_step(step: Step, pieces: Mapping[str, str] | None = None) -> Count:
    """Matrix products of any step on meta tensors, forward or forward and backward.

    ``pieces``: name of a piece → the counter's path of its module.
    """
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    counter.mod_tracker = RunningModules()
    with counter, _Coverage(counter.flop_registry) as coverage:
        step()
    flops = counter.get_flop_counts()
    macs = {_name(packet): _halved(packet, value) for packet, value in flops.get("Global", {}).items()}
    by_piece = {name: sum(flops.get(path, {}).values()) // 2 for name, path in (pieces or {}).items()}
    return Count(NAME, macs, by_piece, uncounted(coverage.calls))


def _halved(packet: object, flops: int) -> int:
    if flops % 2:
        raise ArithmeticError(f"{packet}: {flops} FLOPs are no whole number of multiply-accumulates")
    return flops // 2


def _name(packet: Any) -> str:
    return str(packet._qualified_op_name)


class _Coverage(TorchDispatchMode):
    """Tallies operators that the counter has no formula for."""

    def __init__(self, formulas: Mapping[Any, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self._formulas = formulas

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._overloadpacket not in self._formulas:
            self.calls[_name(func._overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def _convolution_backward(grad_out: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """FLOPs of a convolution's backward, right for grouped convolutions too.

    The formula in torch 2.13 ignores the groups in the gradient of the weight, 22 times too much for a depthwise
    3 × 3 on 64 channels. Each wanted gradient costs as many products as the forward pass: one per weight, image and
    position, where the weight's second dimension already is per group.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = rest
    positions = prod((x if transposed else grad_out)[2:])
    return 2 * int(prod(weight) * positions * x[0]) * sum(map(bool, wanted[:2]))
