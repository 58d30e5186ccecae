"""Peak memory predicted on meta against what PyTorch's allocator hands out."""

from functools import partial

import pytest
import torch
from cases import SMALL_CASES
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from sola_profile.case import Resolution, Settings
from sola_profile.cost.liveness import Liveness, condensed, follow_step, predict_peak, storage_bytes
from sola_profile.cost.workspaces import workspaces_on
from sola_profile.measure import flop_counter
from sola_profile.measure.peak_memory import measure_peak_bytes
from sola_profile.memory import Moment
from sola_profile.source import read_source
from sola_profile.workload import build, cpu_threads, inference_step, training_step
from sola_vision import get_spec, ops
from sola_vision.ops._extension import extension

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """What several threads hold at the same time depends on the moment, and a busy machine runs one best."""
    with cpu_threads(1):
        yield


class Mlp(nn.Module):
    """A residual layer with views, an in-place operator and a shared storage."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(96), nn.Linear(96, 384), nn.Linear(384, 96, bias=False)

    def forward(self, x):
        first, second = self.up(self.norm(x)).relu_().chunk(2, dim=-1)
        return x + self.down(torch.cat([second.square(), first], -1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(64, 192)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


class Composite(nn.Module):
    """Operators that inference_mode hands over whole, and whose parts allocate."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(64, 64)

    def forward(self, x):
        crossed = torch.einsum("bnd,bmd->bnm", x, x)
        return self.map(x.transpose(0, 1)).transpose(0, 1) + F.normalize(crossed, dim=1) @ x


def predicted(make, shape, kind, dtype=torch.float32):
    module, image = make().to("meta"), torch.empty(shape, device="meta", dtype=dtype)
    step = kind(module, image)
    liveness = Liveness([*module.parameters(), image], workspaces_on("cpu"))
    with liveness:
        step()
    assert liveness.live_bytes == 0, "everything that a step allocates dies with it"
    return liveness.peak_bytes


def measured(make, shape, kind):
    step = kind(make(), torch.randn(shape))
    step()
    return measure_peak_bytes(step, CPU)


@pytest.mark.parametrize("kind", [inference_step, training_step])
@pytest.mark.parametrize(("make", "shape"), [(Mlp, (2, 500, 96)), (Attention, (2, 300, 64)), (Composite, (3, 200, 64))])
def test_liveness_is_exact_where_operators_allocate_only_their_results(make, shape, kind):
    assert predicted(make, shape, kind) == measured(make, shape, kind)


@pytest.mark.parametrize(
    ("channels", "out_channels", "size", "stride", "groups"),
    [
        *[(3, 96, 4, 4, 1), (96, 192, 2, 2, 1), (96, 96, 3, 1, 96), (100, 100, 3, 1, 1), (64, 64, 1, 1, 1)],
        # strided 1 × 1: pixels are gathered, from blocks also where there are few channels, but not of groups
        *[(100, 150, 1, 2, 1), (6, 32, 1, 2, 1), (64, 128, 1, 3, 2)],
    ],
)
def test_convolution_workspaces(channels, out_channels, size, stride, groups):
    def make():
        return nn.Conv2d(channels, out_channels, size, stride, groups=groups)

    shape = (1, channels, 128, 128)
    # PyTorch leaves some convolutions to oneDNN only when there is more than one thread, and the prediction follows
    for threads in (1, 2):
        with cpu_threads(threads):
            seen = measured(make, shape, inference_step)
            assert predicted(make, shape, inference_step) == pytest.approx(seen, rel=0.05)


class Mixed(nn.Module):
    """As in ConvNeXt: what a norm over channels makes of an image stays in channels-last memory, maps and depthwise kernels."""

    def __init__(self, kernel=3):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 64, 2, 2), nn.LayerNorm(64)
        self.maps = nn.Sequential(nn.Conv2d(64, 256, 1), nn.GELU(), nn.Conv2d(256, 64, 1))
        self.depthwise = nn.Conv2d(64, 64, kernel, padding=kernel // 2, groups=64)

    def forward(self, image):
        x = self.norm(self.patches(image).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.depthwise(x + self.maps(x))


@pytest.mark.parametrize("kind", [inference_step, training_step])
def test_images_stay_in_channels_last_memory(kind):
    with cpu_threads(2):
        for shape in [(1, 3, 28, 28), (2, 3, 64, 64)]:
            assert predicted(Mixed, shape, kind) == pytest.approx(measured(Mixed, shape, kind), rel=0.05)


@pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="read off processors without AMX")
@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_depthwise_weights_are_added_up_from_shares(kernel, threads):
    with cpu_threads(threads):
        seen = measured(lambda: Mixed(kernel), (1, 3, 28, 28), training_step)
        assert predicted(lambda: Mixed(kernel), (1, 3, 28, 28), training_step) == pytest.approx(seen, rel=0.05)


@pytest.mark.parametrize("kind", [inference_step, training_step])
@pytest.mark.parametrize(
    ("channels", "out_channels", "size", "stride", "groups"), [(12, 96, 3, 4, 1), (96, 96, 3, 1, 96), (64, 64, 3, 1, 4)]
)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        # few channels are read as they are, also in half precision
        (torch.bfloat16, torch.contiguous_format),
        # nothing is put into blocks
        (torch.float32, torch.channels_last),
        # unfolded, one group after the other; so is half precision that the processor has no instructions for
        (torch.float64, torch.contiguous_format),
        (torch.float16, torch.contiguous_format),
    ],
    ids=str,
)
def test_convolution_workspaces_by_dtype_and_layout(
    dtype, layout, channels, out_channels, size, stride, groups, kind
) -> None:
    known = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    if kind is training_step and dtype in known and getattr(torch.ops.mkldnn, f"_is_mkldnn_{known[dtype]}_supported")():
        pytest.skip("what oneDNN copies for gradients in half precision depends on the processor")

    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Conv2d(channels, out_channels, size, stride, groups=groups, dtype=dtype)

        def forward(self, x):
            # the exponential makes a gradient of its own, where that of a sum is one number
            return self.map(x.to(dtype, memory_format=layout)).exp()

    shape = (2, channels, 128, 128)
    seen = measured(Convolution, shape, kind)
    assert predicted(Convolution, shape, kind) == pytest.approx(seen, rel=0.05)


class Mix(nn.Module):
    """A channel mix whose maps all take the same tokens."""

    def __init__(self, channels=96, hidden=384):
        super().__init__()
        sizes = ((hidden, channels), (channels, hidden), (channels, channels))
        self.maps = nn.ParameterList(torch.randn(size) / channels for size in sizes)

    def forward(self, x):
        return ops.channel_mix(x, x, *self.maps)


def mix_step(module, x):
    """Forward and backward to the weights, the gradient given as a layer behind would give it."""
    grad = torch.ones_like(x)
    return lambda: torch.autograd.grad(module(x), tuple(module.parameters()), grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [inference_step, mix_step])
@pytest.mark.parametrize(
    ("tokens", "channels", "hidden"),
    # several ranges of tokens; a range that isn't full; fewer tokens than a tile, and widths that are no whole vectors
    [(3000, 96, 384), (300, 192, 768), (49, 100, 403)],
)
def test_what_a_channel_mix_holds_inside_is_exact(kind, tokens, channels, hidden, dtype):
    def make():
        return Mix(channels, hidden).to(dtype)

    step = kind(make(), torch.randn(2, tokens, channels, dtype=dtype))
    step()
    assert predicted(make, (2, tokens, channels), kind, dtype) == measure_peak_bytes(step, CPU)


def test_hidden_units_are_kept_where_pytorch_runs():
    """On a device without an operator of ours a channel mix is PyTorch's, whatever meta has."""
    resolution, spec = Resolution(224, 224), get_spec("sola_t")
    peaks = {
        (device, mode): predict_peak(build(spec, Settings(mode=mode, device=device), "meta"), resolution).step_bytes
        for device in ("cpu", "mps")
        for mode in ("infer", "train")
    }
    # an inference holds the hidden units of a layer, training those of all layers
    assert peaks["mps", "infer"] > 1.2 * peaks["cpu", "infer"]
    assert peaks["mps", "train"] > 1.3 * peaks["cpu", "train"]


@pytest.mark.parametrize(
    ("dtype", "channels", "hidden", "held"),
    # beside the result: hidden units and what they give; nothing where CUDA has a kernel
    [
        ("float32", 96, 384, 384 + 96),
        ("bfloat16", 96, 384, 0),
        ("bfloat16", 96, 390, 390 + 96),
        ("float16", 200, 800, 1000),
    ],
)
def test_what_a_channel_mix_holds_on_cuda(dtype, channels, hidden, held):
    x, key = torch.empty(2, 50, channels, dtype=getattr(torch, dtype)), torch.empty(hidden, channels)
    item, known = x.element_size(), workspaces_on("cuda")
    assert known[torch.ops.sola.channel_mix.default](x, x, x, key, key.t(), key) == (100 * held * item,)
    back = known[torch.ops.sola.channel_mix_backward.default](None, x, x, x, key, key.t(), key, x)
    assert back == (100 * 2 * (hidden + channels) * item,)


def test_what_all_threads_hold_is_predicted_and_seen():
    shape = (1, 20000, 96)
    with cpu_threads(2):
        step = inference_step(Mix(), torch.randn(shape))
        step()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as session:
            step()
        events = [event for event in session.profiler.kineto_results.events() if event.name() == "[memory]"]
        foreseen = predicted(Mix, shape, inference_step)
    # at the same time or one after the other, as the threads come and go
    assert sum(max(0, event.nbytes()) for event in events) == foreseen > predicted(Mix, shape, inference_step)


def test_an_empty_channel_mix_holds_nothing():
    assert extension.channel_mix_held(0, 16, 32, "float32") == 0
    assert extension.channel_mix_backward_held(4, 0, 32, "bfloat16") == (0, 0)
    with pytest.raises(ValueError, match="channel_mix: there are no 4 tokens of 16 channels with 0 hidden units"):
        extension.channel_mix_held(4, 16, 0, "float32")


def test_few_tokens_hold_sums_of_every_thread():
    shape = (1, 49, 192)
    alone = predicted(partial(Mix, 192, 768), shape, inference_step)
    with cpu_threads(8):
        foreseen = predicted(partial(Mix, 192, 768), shape, inference_step)
    # six blocks of hidden units, a tile of 64 tokens of sums for each, and scratch
    assert foreseen >= alone + 6 * 64 * 192 * 4


@pytest.mark.parametrize("size", [224, 512, 1024])
def test_sola_t_inference_within_five_percent(size):
    spec, resolution = get_spec("sola_t"), Resolution(size, size)
    peak = predict_peak(build(spec, Settings(), "meta"), resolution)
    workload = build(spec, Settings())
    step = workload.step(workload.image(resolution))
    step()
    seen = measure_peak_bytes(step, CPU)
    print(f"{size}: predicted {peak.step_bytes:,} bytes, measured {seen:,}, {peak.step_bytes / seen - 1:+.2%}")
    assert peak.step_bytes == pytest.approx(seen, rel=0.05)
    assert peak.parameter_bytes == storage_bytes(workload.model.parameters())
    assert peak.input_bytes == 3 * size * size * 4
    assert peak.total_bytes == peak.parameter_bytes + peak.input_bytes + peak.step_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["sola_t", "sola_t_softmax"])
def test_training_within_five_percent(model, dtype):
    spec, resolution, settings = get_spec(model), Resolution(128, 160), Settings(mode="train", dtype=dtype, batch=2)
    peak = predict_peak(build(spec, settings, "meta"), resolution)
    workload = build(spec, settings)
    step = workload.step(workload.image(resolution))
    step()
    assert peak.step_bytes == pytest.approx(measure_peak_bytes(step, CPU), rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("model", "optimizer", "kept"),
    [("sola_t", "none", 0), ("sola_t", "sgd", 1), ("timm:deit_tiny_patch16_224", "adamw", 2)],
)
def test_optimizers_and_checkpoints_within_five_percent(model, optimizer, kept, checkpointing):
    settings = Settings(mode="train", batch=2, optimizer=optimizer, checkpointing=checkpointing)
    source, resolution = read_source(model), Resolution(96, 96)
    peak = predict_peak(build(source, settings, "meta"), resolution)
    workload = build(source, settings)
    step = workload.step(workload.image(resolution))
    before = [parameter.clone() for parameter in workload.model.parameters()]
    step()
    assert peak.step_bytes == pytest.approx(measure_peak_bytes(step, CPU), rel=0.05)
    parameter_bytes = storage_bytes(workload.model.parameters())
    # AdamW counts its steps, one number a parameter
    assert peak.optimizer_bytes == pytest.approx(kept * parameter_bytes, abs=4 * len(before))
    assert 0 <= peak.gradient_bytes <= parameter_bytes
    assert all(map(torch.equal, before, workload.model.parameters())), "every step does the same work"


def test_a_checkpoint_trades_memory_for_products():
    # smaller images have more in weights' gradients than in activations
    spec, resolution = get_spec("sola_t"), Resolution(224, 224)
    plain, kept = (Settings(mode="train", checkpointing=on) for on in (False, True))
    peaks = [predict_peak(build(spec, settings, "meta"), resolution).step_bytes for settings in (plain, kept)]
    assert peaks[1] < 0.8 * peaks[0]
    workloads = [build(spec, settings, "meta") for settings in (plain, kept)]
    macs = [flop_counter.count_step(load.step(load.image(resolution))).macs for load in workloads]
    assert 1.2 < macs[1] / macs[0] < 1.34


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_nothing_of_a_checkpointed_operator_outlives_its_backward(case):
    """What a checkpoint computes again ends within the operator, as soon as its last tensor is saved."""
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float32)]
    with Liveness(inputs) as liveness:
        out = checkpoint(lambda *tensors: case.run(list(tensors)), *inputs, use_reentrant=False)
        grads = torch.autograd.grad(out.square().sum(), inputs)
        assert liveness.live_bytes > 0
        del out, grads
        assert liveness.live_bytes == 0


@pytest.mark.parametrize("case", [case for case in SMALL_CASES if case.op == "softmax_attention"][:1], ids=str)
def test_a_kept_result_that_was_overwritten_is_an_error(case):
    out = case.run([tensor.requires_grad_() for tensor in case.inputs(torch.float32)])
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_what_cannot_be_checkpointed_or_optimized_says_so():
    with pytest.raises(ValueError, match="optimizer: belongs to mode train, got mode 'infer'"):
        Settings(optimizer="adamw")
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        Settings(mode="train", optimizer="adam")
    with pytest.raises(ValueError, match="checkpointing: torchvision:resnet18 has no method set_grad_checkpointing"):
        build(read_source("torchvision:resnet18"), Settings(mode="train", checkpointing=True), "meta")


def test_a_timeline_keeps_its_highest_moment_and_its_order():
    moments = [Moment(f"at {place}", (place * 37) % 101) for place in range(1000)]
    kept = condensed(moments, most=50)
    assert len(kept) <= 52
    assert max(moment.live_bytes for moment in kept) == 100
    places = [int(moment.place.removeprefix("at ")) for moment in kept]
    assert places == sorted(set(places))
    peak, timeline = follow_step(build(get_spec("sola_t"), Settings(), "meta"), Resolution(64, 64))
    assert max(moment.live_bytes for moment in timeline) == peak.step_bytes


def test_the_peak_names_its_place():
    peak = predict_peak(build(get_spec("sola_t"), Settings(), "meta"), Resolution(224, 224))
    module, _, operator = peak.at.partition(" ")
    assert module.startswith("stages.0.blocks")
    assert operator.startswith("aten.")


def test_known_and_shared_storages_are_counted_once():
    base = torch.empty(1000, device="meta")
    assert storage_bytes([base, base[:10], base.view(10, 100)]) == 4000
    with Liveness([base]) as liveness:
        view = base[5:]
        assert liveness.live_bytes == 0
        copy = view.clone()
        assert liveness.live_bytes == 995 * 4
        del copy
        assert liveness.live_bytes == 0
    assert liveness.peak_bytes == 995 * 4
