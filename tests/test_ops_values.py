"""Every op against its definition in float64: outputs and all gradients, over the whole case list."""

import pytest
import torch
from cases import CASES, DTYPES, Case
from tolerances import check_close


def _gradients(case: Case, run, inputs, grad):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = run(inputs)
    return out, torch.autograd.grad(out, inputs, grad.to(out.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    exact_inputs = [tensor.double() for tensor in inputs]
    with torch.no_grad():
        shape = case.refer(exact_inputs).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    exact, exact_grads = _gradients(case, case.refer, exact_inputs, grad)
    plain, plain_grads = _gradients(case, case.refer, inputs, grad)
    out, grads = _gradients(case, case.run, inputs, grad)
    assert out.dtype == dtype
    assert [g.dtype for g in grads] == [tensor.dtype for tensor in inputs]
    if not all(g.isfinite().all() for g in (plain, *plain_grads)):
        pytest.skip("plain PyTorch overflows in this dtype")
    conditioning = case.conditioning(dtype)
    check_close("out", [out], [plain], [exact], dtype, conditioning)
    check_close("grad", grads, plain_grads, exact_grads, dtype, conditioning)


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_inference_equals_training(case: Case) -> None:
    """Without a graph the ops save nothing; the result is the same to the bit."""
    inputs = case.inputs(torch.float32)
    trained = case.run([tensor.clone().requires_grad_() for tensor in inputs])
    with torch.inference_mode():
        assert torch.equal(case.run(inputs), trained)
