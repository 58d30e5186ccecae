"""The one policy on how wrong a result may be.

As FlashAttention tests itself (``hopper/test_flash_attn.py``): against a float64 reference, at most twice the largest
error of plain PyTorch in the same dtype, plus a floor for the rounding of the result and of the terms that it is the
sum of. No other test names an absolute tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# rounding steps granted to the result and to its largest term: float64 has no lower reference to compare with
_STEPS = {torch.float64: 256.0, torch.float32: 4.0, torch.bfloat16: 1.0, torch.float16: 1.0}


def largest(tensor: Tensor) -> float:
    """The largest magnitude, 0 for an empty tensor."""
    return tensor.abs().max().item() if tensor.numel() else 0.0


def check_close(
    name: str,
    got: Sequence[Tensor],
    plain: Sequence[Tensor],
    exact: Sequence[Tensor],
    dtype: torch.dtype,
    conditioning: float = 1.0,
    rounded: Sequence[Sequence[Tensor]] = (),
) -> None:
    """Compare tensors that belong together (an output, or all gradients of one call).

    ``plain``: plain PyTorch in ``dtype``; ``exact``: float64. The terms of a gradient that cancels are as large as the
    other gradients of the same call. ``conditioning``: relative error of the terms per relative error of the inputs;
    e^x amplifies a rounding of its exponent |x| times. ``rounded``: float64 results of inputs that were rounded once more.
    What that changes is the error of a stable algorithm; it counts for sums of so many cancelling terms (the gradient of a
    decay, one number per head) that neither the result nor a lucky error of PyTorch tells their rounding.
    """
    terms = max((largest(tensor) for tensor in exact), default=0.0)
    step = _STEPS[dtype] * torch.finfo(dtype).eps * conditioning
    for index, (mine, theirs, truth) in enumerate(zip(got, plain, exact, strict=True)):
        assert mine.shape == truth.shape, f"{name}[{index}]: shape {tuple(mine.shape)}, not {tuple(truth.shape)}"
        assert not mine.isnan().any(), f"{name}[{index}]: NaN"
        error = largest(mine.double() - truth)
        plain_error = largest(theirs.double() - truth)
        bound = 2 * plain_error + step * (largest(truth) + terms)
        bound += _STEPS[dtype] * max((largest(other[index] - truth) for other in rounded), default=0.0)
        assert error <= bound, f"{name}[{index}]: error {error:.3g}, allowed {bound:.3g} (PyTorch's {plain_error:.3g})"
