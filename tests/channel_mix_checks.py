"""What channel mix must do on a GPU beside agreeing with its reference; see ``device_checks``. Needs torch and pytest alone."""

from __future__ import annotations

import torch
from cases import Case
from device_checks import Device, same_bits
from tolerances import check_close
from torch import Tensor

# (B, N, C, M) that a kernel takes in 16-bit types, and some that none does
_MIXES = (
    Case("channel_mix", (2, 70, 24, 40)),
    Case("channel_mix", (2, 33, 136, 72)),
    Case("channel_mix", (2, 5, 7, 9)),
)


def layouts(device: Device, dtype: torch.dtype) -> None:
    """Strided tokens, transposed weights, rows at odd addresses and expanded gradients give what dense copies do."""
    for case in _MIXES:
        inputs = device.inputs(case, dtype)
        tokens = [torch.stack([tensor, tensor], 2).flatten(1, 2)[:, ::2] for tensor in inputs[:2]]
        batches = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in inputs[:2]]
        weights = [tensor.t().contiguous().t() for tensor in inputs[2:]]
        odd = [torch.cat([tensor[..., :1], tensor], -1)[..., 1:] for tensor in inputs]
        grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(device.name, dtype)
        expected = device.run(case, inputs, grad)
        for other in ([*tokens, *inputs[2:]], [*batches, *weights], odd):
            got = device.run(case, other, grad)
            check_close(str(case), got, expected, [tensor.double() for tensor in expected], dtype)
        single_tokens_of_several_images(device, case, inputs, grad)
        row = grad[0, 0].expand(grad.shape)
        same_bits(device.run(case, inputs, row), device.run(case, inputs, row.contiguous()))


def single_tokens_of_several_images(device: Device, case: Case, inputs: list[Tensor], grad: Tensor) -> None:
    """The stride of a token that is alone says nothing: (C, 1, 1) for a pooled map, (C, B·C, 1) for tokens before images."""
    alone = [tensor[:, :1].contiguous() for tensor in (*inputs[:2], grad)]
    expected = device.run(case, [*alone[:2], *inputs[2:]], alone[2])
    channels, images = alone[0].size(2), alone[0].size(0)
    for stride in (1, images * channels):
        other = [tensor.as_strided(tensor.shape, (channels, stride, 1)) for tensor in alone]
        same_bits(device.run(case, [*other[:2], *inputs[2:]], other[2]), expected)


def nan_stays_in_its_token(device: Device, value: float, dtype: torch.dtype) -> None:
    for case in _MIXES:
        inputs = device.inputs(case, dtype)
        inputs[0][1, 4, 3] = value
        got, expected = case.call(device.ops, inputs), case.refer([tensor.double() for tensor in inputs])
        kept = torch.ones(got.shape[:2], dtype=torch.bool)
        kept[1, 4] = False
        assert got[kept].isfinite().all()
        assert torch.equal(got[1, 4].isfinite(), expected[1, 4].isfinite())


def infinity_that_turns_units_off(device: Device, dtype: torch.dtype) -> None:
    """An infinite channel that makes every unit negative leaves an output of 0, whatever lies behind the last unit."""
    for case in _MIXES:
        inputs = device.inputs(case, dtype)
        inputs[0][1, 4, 3] = float("inf")
        inputs[2][:, 3] = -1.0
        assert not case.call(device.ops, inputs)[1, 4].any()


def overflow_at_a_unit_that_is_off(device: Device) -> None:
    """In float16 the gradient of a hidden unit may overflow; where the unit is off it counts for nothing."""
    x, grad = (torch.full((1, 3, 8), size, device=device.name, dtype=torch.float16) for size in (1.0, 2000.0))
    key, value = (torch.full((8, 8), size, device=device.name, dtype=torch.float16) for size in (0.125, 0.5))
    key[0], value[:, 0] = -1.0, 16.0
    inputs = [tensor.requires_grad_() for tensor in (x, x.clone(), key, value, torch.zeros_like(value))]
    gradients = torch.autograd.grad(device.ops.channel_mix(*inputs), inputs, grad)
    assert all(gradient.isfinite().all() for gradient in gradients)


def backward_under_autocast(device: Device, dtype: torch.dtype) -> None:
    """A backward pass that is called under autocast has the dtypes of its forward pass."""
    for case in _MIXES:
        inputs = device.inputs(case, dtype)
        grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(device.name, dtype)
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        out = case.call(device.ops, leaves)
        with torch.autocast(device.name, torch.bfloat16):
            gradients = torch.autograd.grad(out, leaves, grad)
        same_bits(list(gradients), device.run(case, inputs, grad)[1:])
