"""An op against its definition in float64, forward and all gradients: what several tests do to their cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from cases import Case
from tolerances import check_close
from torch import Tensor

from sola_vision import ops

Results = tuple[Tensor, tuple[Tensor, ...]]


def agrees(case: Case, dtype: torch.dtype, where: Any = ops, device: str = "cpu") -> bool:
    """Check a case; False when plain PyTorch overflows in this dtype, so that nothing was compared.

    ``where``: whose ``<op>`` is checked. References run on ``device`` too.
    """
    inputs = [tensor.to(device) for tensor in case.inputs(dtype)]
    exact_inputs = [tensor.double() for tensor in inputs]
    with torch.no_grad():
        shape = case.refer(exact_inputs).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device, dtype)
    exact, exact_grads = _run(case.refer, exact_inputs, grad)
    plain, plain_grads = _run(case.refer, inputs, grad)
    out, grads = _run(lambda tensors: case.call(where, tensors), inputs, grad)
    assert out.dtype == dtype
    assert [g.dtype for g in grads] == [tensor.dtype for tensor in inputs]
    if not all(g.isfinite().all() for g in (plain, *plain_grads)):
        return False
    conditioning = case.conditioning(dtype)
    check_close(f"{case} out", [out], [plain], [exact], dtype, conditioning)
    rounded = [_run(case.refer, inputs, grad)[1] for inputs in _rounded_once_more(exact_inputs, case, dtype)]
    check_close(f"{case} grad", grads, plain_grads, exact_grads, dtype, conditioning, rounded)
    return True


def _run(function: Callable[[list[Tensor]], Tensor], inputs: list[Tensor], grad: Tensor) -> Results:
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(inputs)
    return out, torch.autograd.grad(out, inputs, grad.to(out.dtype))


def _rounded_once_more(tensors: list[Tensor], case: Case, dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """A few times, where a decay's gradient is compared: every number half a unit of ``dtype`` up or down."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(4 if case.decay is not None else 0):
        yield [tensor * (1 + _half_unit(tensor, dtype) * _signs(tensor, generator)) for tensor in tensors]


def _half_unit(tensor: Tensor, dtype: torch.dtype) -> float:
    # parameters (decay) are never kept in half precision
    return torch.finfo(dtype if tensor.dim() > 1 or dtype == torch.float64 else torch.float32).eps / 2


def _signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.device) * 2 - 1
