"""What operators of a training step hold inside on the CPU, each alone: predicted on meta against the allocator."""

# B batch, C channels, H height, W width

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sola_profile.case import Resolution, Settings
from sola_profile.cost.as_run import laid_out_as_run
from sola_profile.cost.cpu_attention import cpu_attention
from sola_profile.cost.liveness import Liveness, predict_peak
from sola_profile.cost.workspaces import workspaces_on
from sola_profile.measure.peak_memory import measure_peak_bytes
from sola_profile.source import FACTORY, ModelSource, read_source
from sola_profile.workload import build, cpu_threads

aten = torch.ops.aten
CPU, CHANNELS_LAST = torch.device("cpu"), torch.channels_last


@pytest.fixture(autouse=True)
def two_threads():
    with cpu_threads(2):
        yield


def predicted(call, *tensors):
    with Liveness(tensors, workspaces_on("cpu")) as liveness:
        call(*tensors)
    return liveness.peak_bytes


def measured(call, *tensors):
    call(*tensors)
    return measure_peak_bytes(lambda: call(*tensors), CPU)


def check(call, *tensors, rel=0.01):
    empty = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in tensors]
    seen = measured(call, *tensors)
    assert predicted(call, *empty) == pytest.approx(seen, rel=rel)
    return seen


def gradients(weight, stride, padding, dilation, groups, mask=(True, True, True)):
    """The gradients of a convolution's image, weight and bias."""
    options = ([stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups, list(mask))
    return lambda grad, x, w: aten.convolution_backward(grad, x, w, [len(weight)], *options)


def convolution(channels, out, kernel, stride=1, padding=None, dilation=1, groups=1, side=28):
    padding = kernel // 2 if padding is None else padding
    x, weight = torch.randn(2, channels, side, side), torch.randn(out, channels // groups, kernel, kernel)
    grad = torch.randn_like(F.conv2d(x, weight, None, stride, padding, dilation, groups))
    return grad, x, weight, gradients(weight, stride, padding, dilation, groups)


COPIED = {
    "blocks": {"channels": 100, "out": 150, "kernel": 3},
    "weights_heavier_than_images": {"channels": 480, "out": 1280, "kernel": 1, "side": 1},
    "a_few_channels": {"channels": 12, "out": 96, "kernel": 3, "side": 56},
    "strided": {"channels": 64, "out": 128, "kernel": 3, "stride": 2, "side": 56},
    "strided_1x1": {"channels": 64, "out": 128, "kernel": 1, "stride": 2, "side": 56},
    "depthwise": {"channels": 72, "out": 72, "kernel": 3, "groups": 72, "side": 56},
    "large_depthwise": {"channels": 288, "out": 288, "kernel": 5, "groups": 288, "side": 7},
    "narrow_groups": {"channels": 40, "out": 40, "kernel": 3, "groups": 4, "side": 56},
    "groups": {"channels": 128, "out": 128, "kernel": 3, "groups": 4},
    "dilated_with_steps": {"channels": 24, "out": 40, "kernel": 3, "stride": 2, "padding": 2, "dilation": 2},
    "a_kernel_over_the_image": {"channels": 64, "out": 512, "kernel": 7, "padding": 0, "side": 7},
    "a_very_large_kernel": {"channels": 24, "out": 48, "kernel": 15, "padding": 0},
}


@pytest.mark.parametrize("sizes", COPIED.values(), ids=COPIED)
def test_gradients_of_a_convolution(sizes):
    *tensors, call = convolution(**sizes)
    check(call, *tensors)


def test_an_image_of_three_channels_is_read_as_it_is():
    grad, x, weight, _ = convolution(3, 64, 4, 4, 0, side=224)
    check(gradients(weight, 4, 0, 1, 1, mask=(False, True, True)), grad, x, weight)
    # kernels that large have no compiled gradient
    grad, x, weight, _ = convolution(3, 96, 16, 16, 0, side=224)
    check(gradients(weight, 16, 0, 1, 1, mask=(False, True, True)), grad, x, weight)


def test_frozen_weights_hold_less():
    grad, x, weight, call = convolution(512, 512, 1, side=7)
    frozen = gradients(weight, 1, 0, 1, 1, mask=(True, False, False))
    assert check(frozen, grad, x, weight) < check(call, grad, x, weight)


@pytest.mark.parametrize("strides", ["channels_last", "repeated"])
def test_a_gradient_in_other_memory_than_the_image_is_copied(strides):
    grad, x, weight, call = convolution(64, 96, 3)
    other = grad.contiguous(memory_format=CHANNELS_LAST) if strides == "channels_last" else grad[:1, :1].expand_as(grad)
    assert check(call, other, x, weight) == check(call, grad, x, weight) + 4 * grad.numel()


@pytest.mark.parametrize(
    "sizes", [(256, 256, 3, 1, 1), (256, 256, 1, 1, 1), (256, 256, 5, 1, 256), (64, 128, 3, 1, 64)]
)
def test_weights_of_an_image_in_channels_last_memory(sizes):
    channels, out, kernel, stride, groups = sizes
    grad, x, weight, call = convolution(channels, out, kernel, stride, groups=groups)
    pixels = [tensor.contiguous(memory_format=CHANNELS_LAST) for tensor in (grad, x)]
    check(call, *pixels, weight, rel=0.02)
    # the weight's gradient lies like the image, so that a parameter takes a copy of it
    meta = call(*(tensor.to("meta") for tensor in (*pixels, weight)))
    steps = [result.stride() for result in laid_out_as_run(aten.convolution_backward.default, (*pixels, weight), meta)]
    assert steps[:2] == [result.stride() for result in call(*pixels, weight)[:2]]


@pytest.mark.parametrize("batch", [1, 2])
def test_narrow_groups_are_unfolded(batch):
    *_, weight, _ = convolution(40, 40, 3, groups=4)
    check(lambda x, w: F.conv2d(x, w, padding=1, groups=4), torch.randn(batch, 40, 28, 28), weight)


def test_a_single_pixel_isnt_in_channels_last_memory():
    x, weight = torch.randn(2, 480, 1, 1), torch.randn(1280, 480, 1, 1)
    check(F.conv2d, x, weight)


@pytest.mark.parametrize("training", [False, True])
def test_batch_norms_hold_a_gradient_of_their_own(training):
    x = torch.randn(2, 64, 56, 56)
    channel = torch.rand(64)

    def call(grad, image, weight):
        moments = (weight, weight, weight, weight, weight)
        return aten.native_batch_norm_backward(grad, image, *moments, training, 1e-5, [True] * 3)

    pixels = x.contiguous(memory_format=CHANNELS_LAST)
    assert check(call, x, x, channel) > check(call, pixels, x, channel) + 3 * x.numel()
    check(call, pixels, pixels, channel)


def test_layer_norms_copy_scattered_rows():
    rows = torch.randn(2, 56, 56, 96)
    scattered = torch.randn(2, 96, 56, 56).permute(0, 2, 3, 1)
    weight, number = torch.rand(96), torch.rand(2, 56, 56, 1)

    def call(grad, x, w, mean, deviation):
        return aten.native_layer_norm_backward(grad, x, [96], mean, deviation, w, w, [True] * 3)

    least = check(call, rows, rows, weight, number, number)
    most = check(call, scattered, scattered, weight, number, number)
    assert most == least + 2 * 4 * rows.numel()
    check(lambda x, w: F.layer_norm(x, [96], w, w), scattered, weight)


def test_a_mask_becomes_a_number_before_it_multiplies():
    x = torch.randn(1000, 100)
    assert check(torch.mul, x, x > 0) == check(torch.mul, x, x) + 4 * x.numel()


def test_the_gradient_of_silu_is_one_kernel():
    x = torch.randn(1000, 100)
    assert check(aten.silu_backward, x, x) == 4 * x.numel()


def test_gradients_of_norms_lie_as_on_the_device():
    x = torch.randn(2, 64, 28, 28)
    pixels, channel = x.contiguous(memory_format=CHANNELS_LAST), torch.rand(64)
    for grad, image in ((pixels, x), (x, pixels)):
        args = (grad, image, *[channel] * 5, True, 1e-5, [True] * 3)
        check_steps(aten.native_batch_norm_backward.default, args)
    rows = pixels.permute(0, 2, 3, 1)
    scattered, number = x.permute(0, 2, 3, 1), torch.rand(2, 28, 28, 1)
    check_steps(
        aten.native_layer_norm_backward.default, (rows, scattered, [64], number, number, *[channel] * 2, [True] * 3)
    )


def check_steps(operator, args):
    on_meta = tuple(arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args)
    image = laid_out_as_run(operator, on_meta, operator(*on_meta))[0]
    assert image.stride() == operator(*args)[0].stride()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("heads", "batch"), [((4, 1), (2, 2)), ((4, 2), (2, 2)), ((4, 4), (2, 2)), ((4, 4), (2, 1))])
def test_attention_of_unlike_operands_builds_all_weights_or_none(heads, batch, grouped):
    """Heads of keys may be fewer where they are grouped; since torch 2.14 one head serves all without that."""
    if heads == (4, 2) and not grouped:
        pytest.skip("PyTorch refuses it")
    query, key = (torch.randn(*sizes, 196, 32) for sizes in zip(batch, heads, strict=True))

    def call(q, k):
        with cpu_attention():
            return F.scaled_dot_product_attention(q, k, k, enable_gqa=grouped)

    fused = aten._scaled_dot_product_flash_attention_for_cpu.default
    is_fused = fused in called(call, query, key)
    assert (fused in called(call, query.to("meta"), key.to("meta"))) == is_fused
    if not is_fused:
        check(call, query, key)


def called(call, *tensors):
    with Called() as operators:
        call(*tensors)
    return operators.names


class Called(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function)
        return function(*args, **(kwargs or {}))


class Recurrent(nn.Module):
    def __init__(self, *sizes, **options):
        super().__init__()
        self.embed, self.lstm = nn.Conv2d(3, sizes[0], 8, 8), nn.LSTM(*sizes, **options)

    def forward(self, image):
        return self.lstm(self.embed(image).flatten(2).transpose(1, 2))[0]


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((192, 48), {"batch_first": True, "bidirectional": True}),
        ((64, 256), {}),
        ((32, 64), {"num_layers": 2, "bias": False, "batch_first": True}),
    ],
)
def test_lstm_keeps_the_workspace_of_whole_layers(sizes, options):
    source = ModelSource("recurrent", FACTORY, made=lambda: Recurrent(*sizes, **options))
    settings, size = Settings(mode="train", batch=16), Resolution(64, 64)
    workload = build(source, settings)
    step = workload.step(workload.image(size))
    step()
    peak = predict_peak(build(source, settings, "meta"), size)
    assert peak.step_bytes == pytest.approx(measure_peak_bytes(step, CPU), rel=0.02)


class Normed(nn.Module):
    """As in PoolFormer: an embedding whose norm leaves pixels, then group norms and a residual."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.groups = nn.Conv2d(3, 64, 4, 4), nn.LayerNorm(64), nn.GroupNorm(1, 64)

    def forward(self, image):
        x = self.norm(self.embed(image).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.groups(x)


@pytest.mark.parametrize("name", ["test_nfnet", "test_byobnet"])
def test_models_train_within_one_percent(name):
    source, settings, size = read_source(f"timm:{name}"), Settings(mode="train", batch=2), Resolution(96, 96)
    workload = build(source, settings)
    step = workload.step(workload.image(size))
    step()
    peak = predict_peak(build(source, settings, "meta"), size)
    assert peak.step_bytes == pytest.approx(measure_peak_bytes(step, CPU), rel=0.01)


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_group_norms_leave_channels_last_memory_alone(mode):
    source, settings, size = (
        ModelSource("normed", FACTORY, made=Normed),
        Settings(mode=mode, batch=2),
        Resolution(224, 224),
    )
    workload = build(source, settings)
    step = workload.step(workload.image(size))
    step()
    peak = predict_peak(build(source, settings, "meta"), size)
    assert peak.step_bytes == pytest.approx(measure_peak_bytes(step, CPU), rel=0.01)
