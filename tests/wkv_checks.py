"""What WKV's CUDA kernels must do where keys, decays or sequences are hard; the emulator and a GPU are held to the same."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from cases import Case
from device_checks import HALF_AND_FLOAT, Device
from tolerances import check_close
from torch import Tensor

from sola_vision import ops
from sola_vision.ops import reference


def wkv_forgets_at_the_right_rate(device: Device) -> None:
    """A rounding of e^(−decay) would be raised to a power of thousands; sampled rows against their definition."""
    tokens = device.tokens // 4
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, tokens, 4, generator=generator) for _ in range(2))
    decay, bonus = torch.tensor([0.1, 1.0, 3.0, 30.0]), torch.zeros(4)
    rows = torch.arange(0, tokens, 97)
    distance = (rows[:, None] - torch.arange(tokens)).abs() - 1

    def sampled(dtype: torch.dtype) -> Tensor:
        logs = k[0].to(dtype) - distance[:, :, None].clamp(min=0) * (decay / tokens).to(dtype)
        return (logs.softmax(1) * v[0].to(dtype)).sum(1)

    got = device.ops.wkv(*(tensor.to(device.name) for tensor in (k, v, decay, bonus)))[0].cpu()[rows]
    check_close("wkv", [got], [sampled(torch.float32)], [sampled(torch.float64)], torch.float32)


def wkv_meets_what_has_faded(device: Device) -> None:
    """Of a key that outweighs all others by e^88, 30 tokens on only e^13 are left: a lane beside it still counts."""
    k, v = torch.full((1, 32, 1), -200.0), torch.zeros(1, 32, 1)
    k[0, 0], k[0, 16:], v[0, 16:] = 100.0, 12.0, 1.0
    inputs = [k, v, torch.full((1,), 2.49), torch.zeros(1)]
    case = Case("wkv", (), (("decay_per", "token"),))
    got = case.call(device.ops, [tensor.to(device.name) for tensor in inputs]).cpu()[0, -4:]
    torch.testing.assert_close(
        got.double(), case.refer([tensor.double() for tensor in inputs])[0, -4:], rtol=1e-3, atol=0
    )


def wkv_learns_where_keys_lie_far_apart(device: Device) -> None:
    """Where lanes and tiles forget e^30 and more, factors of two sums leave float32 while their products vanish."""
    tokens, channels = 80, 256
    generator = torch.Generator().manual_seed(2)
    k, v, grad = (torch.randn(1, tokens, channels, generator=generator) for _ in range(3))
    case = Case("wkv", (), (("decay_per", "token"),))
    # a few tens apart, and hundreds
    for spread, dtype in itertools.product((40, 300), HALF_AND_FLOAT):
        inputs = [(spread * k).to(dtype), v.to(dtype), torch.linspace(0.05, 4.0, channels), torch.zeros(channels)]

        def gradients(where: Any, wide: torch.dtype | None, inputs: list[Tensor] = inputs) -> list[Tensor]:
            leaves = [tensor.to(wide or tensor.dtype).to(device.name).requires_grad_() for tensor in inputs]
            out = case.call(where, leaves)
            return [each.cpu() for each in torch.autograd.grad(out, leaves, grad.to(inputs[0].dtype).to(out))]

        got = gradients(device.ops, None)
        plain, exact = gradients(reference, None), gradients(reference, torch.float64)
        # an exponent of hundreds carries that many roundings
        check_close("grad", got, plain, exact, dtype, conditioning=spread)


def wkv_of_a_long_sequence(device: Device) -> None:
    """More stretches than are connected at once, channels whose tokens share a maximum by block, by lane and not at all.

    One key outweighs those of all stretches but its own, or of its own too.
    """
    tokens, decay = 17_500, torch.tensor([0.0, 1e-4, 0.05, 0.2, 1.5, 5.0])
    generator = torch.Generator().manual_seed(5)
    case = Case("wkv", (), (("decay_per", "token"),))
    for outlier in (0.0, 60.0):
        k, v, grad = (torch.randn(1, tokens, len(decay), generator=generator) for _ in range(3))
        k[0, 4000] += outlier
        inputs = [k, v, decay, torch.linspace(-0.5, 0.5, len(decay))]

        def results(
            where: Any, dtype: torch.dtype, name: str, sources: tuple[Tensor, ...] = (grad, *inputs)
        ) -> list[Tensor]:
            leaves = [tensor.to(name, dtype, copy=True).requires_grad_() for tensor in sources[1:]]
            out = case.call(where, leaves)
            return [out.detach().cpu(), *(each.cpu() for each in torch.autograd.grad(out, leaves, sources[0].to(out)))]

        exact = results(ops, torch.float64, "cpu")
        for got, plain, wanted in zip(
            results(device.ops, torch.float32, device.name), results(ops, torch.float32, "cpu"), exact, strict=True
        ):
            check_close("wkv", [got], [plain], [wanted], torch.float32, conditioning=1 + outlier)


def wkv_of_masked_keys(device: Device) -> None:
    """Keys of −1e30 leave bonus and decay no digit: about an even average, in which tokens that don't exist have no say."""
    k, v = torch.full((1, 70, 3), -1e30), torch.randn(1, 70, 3, generator=torch.Generator().manual_seed(0))
    inputs = [tensor.to(device.name) for tensor in (k, v, torch.full((3,), 0.5), torch.full((3,), 0.2))]
    torch.testing.assert_close(device.ops.wkv(*inputs).cpu(), v.mean(1, keepdim=True).expand_as(v), rtol=0, atol=0.05)


WKV_CHECKS = (
    wkv_forgets_at_the_right_rate,
    wkv_meets_what_has_faded,
    wkv_of_a_long_sequence,
    wkv_learns_where_keys_lie_far_apart,
    wkv_of_masked_keys,
)
