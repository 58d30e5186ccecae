"""What is recorded of other people's models is what PyTorch's kernels do, not what stands for them on the way."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sola_profile.case import Resolution, parse_resolutions
from sola_profile.cost.recording import record_module
from sola_profile.cost.symbolic import SYMBOLIC, model_formula, total
from sola_profile.formula_sweep import FormulaSweep, MemoryOptions
from sola_profile.source import FACTORY, ModelSource


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


def test_interpolation_to_a_size_is_followed_symbolically():
    formula = model_formula(source(lambda _, x: F.interpolate(x, (2 * x.shape[2], 3 * x.shape[3]), mode="bilinear")))
    assert formula.route == SYMBOLIC
    written = formula.value(formula.total.written_bytes, Resolution(64, 96))
    assert written == 4 * 16 * (16 * 24 + 32 * 72)
