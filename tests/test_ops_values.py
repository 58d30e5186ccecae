"""Every op against its definition in float64: outputs and all gradients, over the whole case list."""

import pytest
import torch
from against_reference import agrees
from cases import CASES, DTYPES, Case


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    if not agrees(case, dtype):
        pytest.skip("plain PyTorch overflows in this dtype")


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_inference_equals_training(case: Case) -> None:
    """Without a graph the ops save nothing; the result is the same to the bit."""
    inputs = case.inputs(torch.float32)
    trained = case.run([tensor.clone().requires_grad_() for tensor in inputs])
    with torch.inference_mode():
        assert torch.equal(case.run(inputs), trained)
