"""What is recorded of other people's models is what PyTorch's kernels do, not what stands for them on the way."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sola_profile.case import Resolution, parse_resolutions
from sola_profile.compare.formula_check import check
from sola_profile.cost import work
from sola_profile.cost.breakdown import FORMULAS
from sola_profile.cost.recording import record_module
from sola_profile.cost.symbolic import SYMBOLIC, model_formula, total
from sola_profile.formula_sweep import FormulaSweep, MemoryOptions
from sola_profile.measure.counts import Count
from sola_profile.source import FACTORY, ModelSource
from sola_profile.workload import cpu_threads


class Applied(nn.Module):
    """A convolution with patches of 4, then a function of its result and of the modules that came along."""

    def __init__(self, function, **modules):
        super().__init__()
        self.patches, self.function = nn.Conv2d(3, 16, 4, 4), function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, image):
        return self.function(self, self.patches(image))


def source(function, **modules):
    return ModelSource("applied", FACTORY, made=Applied(function, **modules))


def swept(model, sizes="128", **memory):
    sweep = FormulaSweep(model, parse_resolutions(sizes), memory=MemoryOptions(**memory))
    list(sweep.run())
    return sweep.result()


RESIZED = {"bilinear": "aten::upsample_bilinear2d", "bicubic": "aten::upsample_bicubic2d"}
RESIZED |= {"nearest": "aten::upsample_nearest2d", "nearest-exact": "aten::_upsample_nearest_exact2d"}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("mode", RESIZED)
def test_interpolation_is_one_kernel_with_its_memory(mode):
    result = swept(source(lambda _, x: F.interpolate(x, scale_factor=2, mode=mode)), "256,100x120", measure=True)
    assert result.formula.route == SYMBOLIC
    assert result.coverage.unknown == ()
    for row in result.rows:
        assert [call.operator for call in row.recording.calls] == ["aten::convolution", RESIZED[mode]]
        assert row.memory.step_bytes == pytest.approx(row.measured_memory.step_bytes, rel=0.03)


def test_dropout_in_evaluation_is_nothing():
    result = swept(
        source(lambda _, x: F.dropout(F.hardshrink(F.dropout(x, 0.5, training=False)), 0.0)), "64", measure=True
    )
    (row,) = result.rows
    assert [call.operator for call in row.recording.calls] == ["aten::convolution", "aten::hardshrink"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("size", ["256", "100x120"])
def test_a_view_of_one_image_is_copied_by_a_convolution(size):
    """Tokens as an image, whose channels lie side by side: PyTorch takes a view of one image for another layout."""
    model = source(
        lambda self, x: self.depthwise(x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).view_as(x)),
        depthwise=nn.Conv2d(16, 16, 3, padding=1, groups=16),
    )
    (row,) = swept(model, size, measure=True).rows
    assert row.memory.step_bytes == pytest.approx(row.measured_memory.step_bytes, rel=0.001)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
@pytest.mark.parametrize("channels", [8, 16])
def test_pooling_copies_what_is_cut_out_of_wider_pixels(pool, channels):
    model = source(lambda _, x: pool(x.permute(0, 2, 3, 1).contiguous()[..., :channels].permute(0, 3, 1, 2), 2))
    (row,) = swept(model, "256", measure=True).rows
    assert row.memory.step_bytes == pytest.approx(row.measured_memory.step_bytes, rel=0.001)


@pytest.mark.usefixtures("one_thread")
def test_softmax_that_may_meet_rows_without_weights_holds_a_mask():
    query = nn.Conv2d(16, 16, 1)
    model = source(
        lambda self, x: F.scaled_dot_product_attention(*[self.query(x).flatten(2)[None].transpose(2, 3)[..., ::2]] * 3),
        query=query,
    )
    (row,) = swept(model, "128", measure=True).rows
    assert "aten::_safe_softmax" in [call.operator for call in row.recording.calls]
    assert row.memory.step_bytes == pytest.approx(row.measured_memory.step_bytes, rel=0.002)


# channels-last images: weights that PyTorch copies once, and twice
@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_of_channels_last_convolutions_are_copied(kernel):
    model = source(
        lambda self, x: self.wide(x.permute(0, 2, 3, 1).contiguous().repeat(1, 1, 1, 16).permute(0, 3, 1, 2)),
        wide=nn.Conv2d(256, 512, kernel, padding=kernel // 2),
    )
    with cpu_threads(2):
        (row,) = swept(model, "64", measure=True).rows
    assert row.memory.step_bytes == pytest.approx(row.measured_memory.step_bytes, rel=0.03)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dims", [(2,), (2, 3), (1, 2, 3)])
def test_rolling_along_several_dimensions_holds_all_results(dims):
    (row,) = swept(source(lambda _, x: torch.roll(x.sin(), (1,) * len(dims), dims)), "256", measure=True).rows
    assert row.memory.step_bytes == pytest.approx(row.measured_memory.step_bytes, rel=0.001)


def test_interpolation_to_a_size_is_followed_symbolically():
    formula = model_formula(source(lambda _, x: F.interpolate(x, (2 * x.shape[2], 3 * x.shape[3]), mode="bilinear")))
    assert formula.route == SYMBOLIC
    written = formula.value(formula.total.written_bytes, Resolution(64, 96))
    assert written == 4 * 16 * (16 * 24 + 32 * 72)


def calls_of(function, *shape, **modules):
    """Calls of a function of one tensor and the modules that came along, by operator, as their work in total."""

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in modules.items():
                self.add_module(name, module)

        def forward(self, x):
            return function(self, x)

    return record_module(Called, shape).calls


def test_a_sampled_grid_is_counted_by_its_mode():
    def sampled(mode, x):
        grid = x[:, :2, :5].permute(0, 2, 3, 1)
        return F.grid_sample(x, grid, mode, align_corners=False)

    for mode, per_element, per_position in (("bilinear", 7, 16), ("nearest", 0, 8), ("bicubic", 35, 60)):
        (call,) = calls_of(lambda _, x, mode=mode: sampled(mode, x), 2, 8, 9, 6)
        assert (call.operator, call.kind) == ("aten::grid_sampler_2d", "sampling")
        assert call.work.scalar_ops == {"elementwise": 2 * 5 * 6 * (8 * per_element + per_position)}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda _, x: F.instance_norm(x), {"norm": 7 * 8 * 54}),
        (lambda _, x: F.avg_pool3d(x, (2, 3, 2)), {"elementwise": 4 * 3 * 3 * 12}),
        (lambda _, x: F.adaptive_max_pool2d(x, 2), {"elementwise": 8 * 54}),
    ],
)
def test_norms_and_pools_that_arrive_whole_are_counted(function, expected):
    calls = calls_of(function, 1, 8, 9, 6)
    assert total(calls).scalar_ops == expected
    assert all(call.kind for call in calls)


def test_what_has_no_formula_is_unknown_whatever_it_is_for(monkeypatch):
    monkeypatch.delitem(work.SCALARS, "aten::grid_sampler_2d")
    result = swept(source(lambda _, x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False)))
    assert result.coverage.unknown == ("aten::grid_sampler_2d",)
    assert result.coverage.share < 1


def test_the_products_of_an_lstm_are_those_that_the_dispatcher_sees():
    def of_tokens(model, x):
        return model.lstm(x.flatten(2).transpose(1, 2))[0]

    lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True, bidirectional=True)
    (row,) = swept(source(of_tokens, lstm=lstm), "64").rows
    by_hand = 2 * 16**2 * 4 * 24 * (16 + 24 + 48 + 24)
    products = next(check for check in row.checks if check.family == "matmul and attention")
    assert products.macs["formulas"] == products.macs["FlopCounterMode"] == by_hand
    assert "FlopCounterMode" not in products.blind


def test_formulas_that_miss_what_a_counter_finds_are_blind_where_an_operator_is_unknown():
    fft = calls_of(lambda _, x: torch.fft.fft(x).real @ x.transpose(-1, -2), 2, 8, 4)
    recording = replace(record_module(nn.Identity, (2, 8, 4)), calls=fft)
    macs = total(fft).macs

    def judged(seen):
        return check(recording, [Count("other", {"aten::mm": seen}, {})])[1]

    assert judged(macs).blind == {}
    assert judged(macs + 1).blind == {FORMULAS: ("aten::_fft_r2c",)}
    assert judged(macs + 1).explained
    # a counter that lists nothing and finds less contradicts as before
    assert judged(macs - 1).contradicted_by == ("other",)


def test_complex_numbers_cost_what_their_parts_cost():
    calls = calls_of(lambda _, x: torch.complex(x, x) @ torch.complex(x, x).mT + 0, 2, 5, 7)
    assert {call.operator: call.work.macs for call in calls if call.work.macs} == {
        "aten::bmm of complex numbers": 4 * 2 * 5 * 5 * 7
    }
    assert total(calls).scalar_ops == {"elementwise": 2 * 2 * 5 * 5}
    (made, product) = calls_of(lambda _, x: torch.complex(x, x) * (2 + 1j), 2, 5, 7)
    assert (made.kind, product.work.scalar_ops) == ("copy", {"elementwise": 6 * 70})


def test_counters_are_blind_to_complex_numbers():
    (row,) = swept(source(lambda _, x: torch.complex(x, x) @ torch.complex(x, x).mT)).rows
    assert row.agree
    matmuls = row.checks[1]
    assert matmuls.macs["formulas"] == 4 * matmuls.macs["FlopCounterMode"] > 0
    assert "aten::bmm of complex numbers" in matmuls.blind["FlopCounterMode"]


class _Token(nn.Module):
    """Hands a parameter from one module to another, as transformers do with class tokens."""

    def __init__(self):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.zeros(1, 1, 16))
        self.first, self.second = nn.Identity(), nn.Linear(16, 16)

    def forward(self, image):
        token = self.second(self.first(self.token.expand(image.size(0), -1, -1)))
        return token + self.patches(image).flatten(2).transpose(1, 2)


def test_parameters_may_be_handed_to_modules():
    (row,) = swept(ModelSource("token", FACTORY, made=_Token()), "64").rows
    assert row.agree
    assert "FlopCounterMode" not in row.missing
