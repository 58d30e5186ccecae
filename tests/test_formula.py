"""Polynomials of any model: exact against independent counters and against arithmetic by hand."""

import time
from fractions import Fraction

import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional as F

from sola_profile.case import Resolution, parse_resolutions
from sola_profile.compare.formula_check import check
from sola_profile.cost.breakdown import FORMULAS
from sola_profile.cost.closed_form import closed_form, complexity
from sola_profile.cost.expression import Letters
from sola_profile.cost.recording import highest, record_at, record_module
from sola_profile.cost.symbolic import COUNTED, INTERPOLATED, SYMBOLIC, evaluate, merged, model_formula, total
from sola_profile.cost.symbols import COLUMNS, ROWS
from sola_profile.formula_sweep import FormulaSweep, MemoryOptions
from sola_profile.measure.counts import Count, Uncounted
from sola_profile.report.formula_tables import expressions, latex, memory_sentences
from sola_profile.report.numbers import polynomial_text
from sola_profile.source import FACTORY, InputShape, ModelSource, read_source
from sola_profile.workload import cpu_threads


def found(name, sizes="224,256x320,448", **options):
    sweep = FormulaSweep(read_source(name), parse_resolutions(sizes), **options)
    assert list(sweep.run())
    return sweep.result()


@pytest.mark.parametrize("name", ["sola_t", "sola_s_linear"])
def test_presets_agree_with_its_closed_form_and_with_the_counters(name):
    result = found(name, "224,256x320,992")
    assert (result.formula.route, result.formula.stride) == (SYMBOLIC, 32)
    assert all(row.from_formula and row.exact and not row.missing for row in result.rows)
    assert result.coverage.unknown == ()
    # scalar operations too, but for the division of a decay by N, one per channel of a layer, which the spec leaves out
    row = result.rows[0]
    spec = result.formula.source.spec
    closed_ops = closed_form(spec, row.resolution).scalar_ops
    channels = sum(layer.dim for layer in spec.layers() if layer.mixer.name == "wkv")
    assert {**closed_ops, "elementwise": closed_ops["elementwise"] + channels} == row.totals.scalar_ops
    # as a polynomial in N too, coefficient by coefficient
    closed = complexity(result.formula.source.spec).total
    terms = expressions(result)["MACs"].terms
    assert [terms.get((power,), Fraction(0)) for power in (2, 1, 0)] == [closed.a, closed.b, closed.c]


def test_a_size_off_the_lattice_is_counted_and_agrees_with_the_closed_form():
    (row,) = found("sola_t", "100x333").rows
    assert not row.from_formula
    assert row.exact


# (model of timm, route, stride, whether its peak memory is predicted within 2 %); at every size that the model takes all
# counters must agree to the last MAC, apart from fvcore on what it says it is blind to
ZOO = [
    ("resnet18", SYMBOLIC, 32, True),
    ("vit_tiny_patch16_224", SYMBOLIC, 32, True),
    ("swin_tiny_patch4_window7_224", SYMBOLIC, 224, True),
    ("pvt_v2_b0", SYMBOLIC, 32, True),
    ("efficientvit_b0", SYMBOLIC, 32, True),
    ("convnext_atto", SYMBOLIC, 32, False),
    ("xcit_nano_12_p16_224", SYMBOLIC, 32, True),
    ("mambaout_femto", SYMBOLIC, 32, True),
    ("mobilenetv3_small_050", SYMBOLIC, 32, True),
    ("poolformer_s12", SYMBOLIC, 32, True),
    ("edgenext_xx_small", SYMBOLIC, 32, True),
    ("regnety_002", SYMBOLIC, 32, True),
    ("repvit_m0_9", SYMBOLIC, 32, False),
    ("fastvit_t8", SYMBOLIC, 32, True),
    ("ghostnet_050", SYMBOLIC, 32, True),
    ("tinynet_e", SYMBOLIC, 32, False),
    ("lcnet_050", SYMBOLIC, 32, False),
    # a table of positions or a map over tokens, made for one size
    ("mixer_s32_224", INTERPOLATED, 32, True),
    ("resmlp_12_224", INTERPOLATED, 32, False),
    # attention biases for 7 × 7 tokens and no other number
    ("efficientformer_l1", COUNTED, 32, False),
    # its head pools small maps and convolves large ones: torch's symbols can follow that from 2.14 on, at the earliest
    ("vgg11", (COUNTED, SYMBOLIC), 32, False),
]


@pytest.mark.parametrize(("name", "route", "stride", "memory_known"), ZOO)
def test_models_of_timm(name, route, stride, memory_known):
    # PyTorch chooses other convolutions for a single thread
    with cpu_threads(2):
        result = found(f"timm:{name}", limit_s=600, memory=MemoryOptions(measure=memory_known))
    assert result.formula.route in ({route} if isinstance(route, str) else route)
    assert result.formula.stride == stride
    assert any(row.from_formula for row in result.rows) == (result.formula.route != COUNTED)
    assert all(row.agree for row in result.rows), result.rows
    formula, row = result.formula, next((row for row in result.rows if row.from_formula), None)
    if row is not None:
        # the polynomials say what a count at this size says, operator by operator, bytes included
        counted = record_at(formula.source, formula.shape, "float32", row.resolution, sized=formula.sized)
        assert row.recording.calls == merged(counted).calls
    for row in result.rows:
        assert "FlopCounterMode" not in row.missing
        assert all(one.residuals["FlopCounterMode"] == 0 for one in row.checks)
        if memory_known:
            assert row.memory.step_bytes == pytest.approx(row.measured_memory.step_bytes, rel=0.02)
    assert result.coverage.unknown == ()


# several threads hold their scratch at the same time or one after the other
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["sola_t", "sola_t_softmax"])
def test_memory_of_presets_is_exact_as_a_polynomial(name):
    memory = MemoryOptions(measure=True, limit_bytes=96 * 2**20)
    result = found(name, "96x160,224,333", memory=memory)
    assert [row.from_formula for row in result.rows] == [True, True, False]
    assert len(result.formula.recording.moments) > 1
    for row in result.rows:
        assert row.memory.step_bytes == pytest.approx(row.measured_memory.step_bytes, rel=0.001)
    fit = result.fit
    assert fit.memory.total_bytes <= 96 * 2**20
    assert fit.measured_memory.total_bytes <= 96 * 2**20
    larger = Resolution(fit.resolution.height + 32, fit.resolution.height + 32)
    assert result.formula.memory(larger).total_bytes > 96 * 2**20


def test_nothing_fits_in_less_than_the_weights():
    result = found("timm:resnet18", "64", memory=MemoryOptions(limit_bytes=2**20))
    assert result.fit.resolution is None
    assert any("not even 64 × 64 pixels fit" in sentence for sentence in memory_sentences(result))


def test_memory_without_a_formula_is_predicted_size_by_size():
    result = found("timm:mixer_s32_224", "224", memory=MemoryOptions(limit_bytes=2**30))
    assert result.fit is None
    assert result.rows[0].memory.step_bytes > 0
    with pytest.raises(ValueError, match="has no formula for its memory"):
        result.formula.largest_square(2**30)


def test_moments_that_another_exceeds_everywhere_are_dropped():
    moments = [("a", 3 * ROWS), ("b", ROWS * COLUMNS), ("c", 2 * ROWS), ("d", 3 * ROWS), ("e", 4 * ROWS + 1), ("f", 1)]
    assert [place for place, _ in highest(moments)] == ["b", "e"]
    assert list(highest([("x", 5), ("y", 7), ("z", 7)])) == [("y", 7)]


def test_the_polynomial_of_sola_t_takes_seconds_and_a_thousand_sizes_a_tenth():
    formula = model_formula(read_source("sola_t"))
    start = time.perf_counter()
    values = [formula.value(formula.total.macs, Resolution(32 * (i % 60 + 2), 32 * (i // 60 + 2))) for i in range(1000)]
    took_s = time.perf_counter() - start
    assert len(set(values)) > 100
    # timing never fails a test: the figures are for the eye of whoever runs with -rP
    print(f"found in {formula.took_s:.1f} s, 1,000 sizes in {took_s:.3f} s")


class Windowed(nn.Module):
    """Attention within windows of 7 × 7 after patches of 4, padded as Swin pads."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)

    def forward(self, image):
        x = self.patches(image)
        x = F.pad(x, (0, -x.shape[-1] % 7, 0, -x.shape[-2] % 7))
        batch, channels, rows, columns = x.shape
        x = x.view(batch, channels, rows // 7, 7, columns // 7, 7).permute(0, 2, 4, 3, 5, 1).reshape(-1, 49, channels)
        x = self.norm(x)
        return F.scaled_dot_product_attention(x, x, x)


class Fixed(nn.Module):
    """A table of positions for one size, which its constructor takes."""

    def __init__(self, img_size=(64, 64)):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.positions = nn.Parameter(torch.zeros(1, img_size[0] // 8 * (img_size[1] // 8), 8))

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


class Lookup(nn.Module):
    """A cost that is no quadratic: the number of passes depends on the side."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(8, 8)

    def forward(self, image):
        x = image.new_zeros(4, 8)
        for _ in range(int(image.shape[-1]) ** 3 % 1013):
            x = self.map(x)
        return x


def local(name):
    return ModelSource(f"{__name__}:{name}", FACTORY)


def test_windows_raise_the_stride_until_they_come_out_even():
    formula = model_formula(local("Windowed"))
    assert (formula.route, formula.stride) == (SYMBOLIC, 4 * 7 * 8)
    by_hand = (448 // 4) ** 2 * (3 * 16 * 8 + 2 * 49 * 8)
    assert formula.value(formula.total.macs, Resolution(448, 448)) == by_hand
    # a single window needs no copies, so that torch takes another way there
    assert not formula.covers(Resolution(224, 224))
    # 60 × 60 patches are padded to 63 × 63, and the padding is executed
    padded = total(formula.at(Resolution(240, 240)).calls).macs
    assert padded == 60**2 * 3 * 16 * 8 + 63**2 * 2 * 49 * 8


def test_a_model_of_fixed_size_is_interpolated_and_proved():
    formula = model_formula(local("Fixed"))
    assert (formula.route, formula.sized, formula.square) == (INTERPOLATED, True, False)
    assert "symbolic" in formula.why or "fixes" in formula.why
    tokens = 16 * 20
    assert formula.value(formula.total.macs, Resolution(128, 160)) == tokens * 3 * 64 * 8 + 2 * tokens**2 * 8


def test_what_no_polynomial_fits_is_counted_size_by_size():
    formula = model_formula(local("Lookup"))
    assert formula.route == COUNTED
    assert formula.recording is None
    assert not formula.covers(Resolution(32, 32))
    assert total(formula.at(Resolution(32, 32)).calls).macs == 32**3 % 1013 * 4 * 64


def test_conditions_of_the_model_bound_its_formula():
    """At 224 a table of 14 × 14 positions is used as it is, elsewhere it is resampled."""
    formula = model_formula(read_source("timm:vit_tiny_patch16_224"))
    assert not formula.covers(Resolution(224, 224))
    assert formula.covers(Resolution(256, 256))
    assert "aten::_upsample_bicubic2d_aa" in {call.operator for call in formula.recording.calls}
    assert "aten::_upsample_bicubic2d_aa" not in {call.operator for call in formula.at(Resolution(224, 224)).calls}


def test_a_value_where_the_formula_does_not_hold_is_refused():
    formula = model_formula(read_source("timm:resnet18"))
    with pytest.raises(ValueError, match="doesn't cover 100; it holds where both sides divide by 32"):
        formula.value(formula.total.macs, Resolution(100, 100))


def test_the_batch_scales_everything_but_the_weights():
    one = model_formula(read_source("timm:resnet18"))
    three = model_formula(read_source("timm:resnet18"), InputShape.parse("3x3xHxW"))
    assert three.total.macs == 3 * one.total.macs
    weights = 2 * one.total.read_bytes - (three.total.read_bytes - one.total.read_bytes)
    assert set(weights.monoms()) == {(0, 0)}


def test_half_precision_halves_the_bytes_and_not_the_work():
    full, half = (model_formula(read_source("timm:convnext_atto"), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert half.total.macs == full.total.macs
    assert 2 * half.total.written_bytes == full.total.written_bytes


def work_of(module, *shape):
    return total(record_module(lambda: module, shape).calls)


def test_bytes_of_a_linear_map_and_of_broadcast_operands():
    linear = work_of(nn.Linear(16, 32), 1, 10, 16)
    # a view, addmm, a view
    assert (linear.read_bytes, linear.written_bytes) == (4 * (10 * 16 + 16 * 32 + 32), 4 * 10 * 32)

    class Expanded(nn.Module):
        def forward(self, x):
            return x[:, :1].expand_as(x) + x

    work = work_of(Expanded(), 1, 10, 16)
    assert (work.read_bytes, work.written_bytes) == (4 * (16 + 160), 4 * 160)
    assert work.scalar_ops == {"elementwise": 160}


def test_scalar_operations_by_kind():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(16)

        def forward(self, x):
            return torch.sigmoid(self.norm(x)).relu_().softmax(-1).mean(1)

    work = work_of(Mixed(), 1, 10, 16)
    # the mean adds every element once
    assert work.scalar_ops == {
        "norm": 7 * 160,
        "exp": 2 * 160,
        "activation": 3 * 160,
        "softmax": 4 * 160,
        "elementwise": 160,
    }
    assert work.macs == 0


def test_inplace_and_out_of_place_operators_do_the_same_work():
    class Both(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.silu = nn.SiLU(inplace=inplace)

        def forward(self, x):
            return self.silu(x)

    assert work_of(Both(True), 1, 8, 8) == work_of(Both(False), 1, 8, 8)


@torch.library.custom_op("test_formula::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    return x @ x.transpose(-1, -2)


@mystery.register_fake
def _(x):
    return x.new_empty((*x.shape[:-1], x.shape[-2]))


class Hidden(nn.Module):
    def forward(self, x):
        return torch.ops.test_formula.mystery(x.relu())


def test_an_operator_without_a_formula_is_named_with_its_share_of_the_traffic():
    sweep = FormulaSweep(local("Hidden"), parse_resolutions("64"))
    list(sweep.run())
    coverage = sweep.result().coverage
    assert coverage.unknown == ("test_formula::mystery",)
    assert coverage.share == pytest.approx(0.5)


def test_a_counter_that_sees_less_is_blind_only_if_it_says_so():
    recording = record_module(lambda: nn.Linear(4, 4, bias=False), (1, 8, 4))
    macs = 8 * 4 * 4

    def judged(seen, *unseen):
        uncounted = tuple(Uncounted(name, 1, "") for name in unseen)
        return {one.family: one for one in check(recording, [Count("other", {"aten::mm": seen}, {}, uncounted)])}

    same = judged(macs)["matmul and attention"]
    assert same.macs == {FORMULAS: macs, "other": macs}
    assert same.exact
    blind = judged(macs // 2, "aten::scaled_dot_product_attention")["matmul and attention"]
    assert not blind.exact
    assert blind.explained
    assert judged(macs // 2)["matmul and attention"].contradicted_by == ("other",)
    # more than ours can't be blindness
    assert judged(2 * macs, "x::y")["matmul and attention"].contradicted_by == ("other",)


def test_formulas_as_text_and_latex():
    result = found("sola_t", "224")
    assert polynomial_text(expressions(result)["MACs"]) == "201/64·N² + 589,568·N + 288,000"
    assert r"\mathrm{MACs} &= \frac{201 N^{2}}{64} + 589568 N + 288000" in latex(result)
    letters = Letters(result.formula, [result.formula.total.macs])
    assert letters.definition.startswith("N = H/4 · W/4, the positions after the first convolution; exact where")


def test_what_depends_on_the_sides_is_written_in_their_letters():
    class Valid(nn.Conv2d):
        """Without padding an image loses a row and a column."""

        def __init__(self):
            super().__init__(1, 1, 2, bias=False)

    globals()["Valid"] = Valid
    formula = model_formula(local("Valid"), InputShape.parse("1x1xHxW"))
    expression = Letters(formula, [formula.total.macs]).express(formula.total.macs)
    assert polynomial_text(expression) == "4·H·W − 4·H − 4·W + 4"
    height, width = sympy.symbols("H W", positive=True, integer=True)
    assert sympy.expand(expression.sympy() - 4 * (height - 1) * (width - 1)) == 0


def test_evaluation_refuses_what_is_no_whole_number():
    formula = model_formula(read_source("timm:resnet18"))
    half = formula.total.macs / 1024**2
    with pytest.raises(ArithmeticError, match="no whole number"):
        evaluate(half, 1, 1)
