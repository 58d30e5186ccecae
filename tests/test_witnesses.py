"""Three witnesses of the same matrix products: the closed form, FlopCounterMode and fvcore."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sola_profile.case import Resolution, Settings
from sola_profile.compare.witnesses import agreement
from sola_profile.cost.closed_form import closed_form
from sola_profile.measure import flop_counter, fvcore_counter
from sola_profile.operators import operator_kind
from sola_profile.workload import build
from sola_vision import BackboneSpec, MixerSpec, get_spec, list_models, ops
from sola_vision.layers.mixers import MIXERS

COUNTERS = (flop_counter.count_forward, fvcore_counter.count_forward)
BARE = BackboneSpec("bare", (32, 32, 32, 32), "L|L|L|S", bridges=())


def witnesses(spec, resolution, settings=None):
    settings = settings or Settings()
    workload = build(spec, settings, "meta")
    counts = [count(workload, resolution) for count in COUNTERS]
    return agreement(closed_form(spec, resolution, settings.batch), counts)


@pytest.mark.parametrize("name", list_models())
def test_all_three_agree_exactly_on_every_piece_of_every_preset(name):
    workload = build(get_spec(name), Settings(), "meta")
    for size in ("224", "512x768", "1024"):
        resolution = Resolution.parse(size)
        found = agreement(
            closed_form(workload.source.spec, resolution), [count(workload, resolution) for count in COUNTERS]
        )
        assert found.exact, found.differences
        assert found.unknown == ()


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_every_mixer_agrees_at_a_padded_size_and_in_a_batch(mixer):
    spec = replace(BARE, pattern="M|M|M|M", mixers={"M": MixerSpec(mixer)})
    found = witnesses(spec, Resolution(100, 333), Settings(batch=3))
    assert found.exact, found.differences
    assert found.unknown == ()


def test_a_difference_is_named_by_witness_and_piece():
    resolution = Resolution(64, 64)
    workload = build(BARE, Settings(), "meta")
    count = flop_counter.count_forward(workload, resolution)
    wrong = replace(
        count,
        macs_by_operator={**count.macs_by_operator, "aten::mm": count.macs_by_operator["aten::mm"] - 1},
        macs_by_piece={**count.macs_by_piece, "2.1 linear": count.macs_by_piece["2.1 linear"] - 1},
    )
    found = agreement(closed_form(BARE, resolution), [wrong])
    assert not found.exact
    assert [(part.witness, part.piece, part.residual) for part in found.differences] == [
        ("FlopCounterMode", "whole model", -1),
        ("FlopCounterMode", "2.1 linear", -1),
    ]


class Hidden(nn.Module):
    """Calls an operator that no counter has a formula for."""

    def forward(self, x):
        return torch.ops.test_witnesses.mystery(x)


@torch.library.custom_op("test_witnesses::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    return x @ x.transpose(-1, -2)


@mystery.register_fake
def _(x):
    return x.new_empty((*x.shape[:-1], x.shape[-2]))


def counted(module, shape):
    """What both counters find in any module."""
    module, image = module.to("meta"), torch.empty(shape, device="meta")
    with torch.no_grad():
        first = flop_counter.count_step(lambda: module(image))
    return [first, fvcore_counter.count_module(module, image)]


def test_an_operator_without_a_formula_is_never_a_silent_zero():
    for count in counted(Hidden(), (1, 3, 8, 8)):
        assert count.macs == 0
        assert [entry.operator for entry in count.uncounted if not entry.kind] == ["test_witnesses::mystery"]


class Mix(nn.Module):
    """A channel mix that is a call of its operator, whatever hooks a counter sets."""

    def __init__(self):
        super().__init__()
        self.maps = nn.ParameterList(torch.empty(size) for size in ((24, 8), (8, 24), (8, 8)))

    def forward(self, x):
        return ops.channel_mix(x, x, *self.maps)


def test_a_channel_mix_is_counted_as_one_operator_and_as_three_maps():
    for count in counted(Mix(), (2, 10, 8)):
        assert count.macs == 2 * 10 * 8 * (2 * 24 + 8)
        assert any("channel_mix" in name for name in count.macs_by_operator)
    # fvcore hooks every module of a layer, which calls its maps then
    workload = build(BARE, Settings(), "meta")
    first, second = (count(workload, Resolution(64, 64)) for count in COUNTERS)
    assert first.macs == second.macs
    assert "sola::channel_mix" in first.macs_by_operator
    assert not any("channel_mix" in name for name in second.macs_by_operator)


class Convolutions(nn.Module):
    """All the ways of convolving, to see that the trace on meta misses none."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(4, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=8, stride=2)
        self.transposed = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.flat = nn.Conv1d(6, 5, 3, dilation=2)

    def forward(self, x):
        return self.flat(self.transposed(self.grouped(self.plain(x))).flatten(2))


def test_convolutions_are_counted_alike_and_right():
    expected = 2 * (8 * 4 * 9 * 16 * 16 + 8 * 9 * 7 * 7 + 8 * 6 * 4 * 7 * 7 + 6 * 5 * 3 * (14 * 14 - 4))
    assert [count.macs for count in counted(Convolutions(), (2, 4, 16, 16))] == [expected, expected]


class Attention(nn.Module):
    """Explicit, einsum and fused attention, which real-tensor counters get wrong in three ways."""

    def forward(self, x):
        q = k = v = x.flatten(1, 2)[:, None]
        explicit = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        summed = torch.einsum("bhnm,bhmd->bhnd", torch.einsum("bhnd,bhmd->bhnm", q, k), v)
        return explicit + summed + F.scaled_dot_product_attention(q, k, v)


def test_attention_in_every_spelling_is_counted_by_the_dispatcher():
    shape, tokens, dim = (2, 6, 4, 8), 24, 8
    first, _ = counted(Attention(), shape)
    assert first.macs == 3 * 2 * 2 * tokens * tokens * dim


@pytest.mark.parametrize("groups", [1, 4, 64])
def test_training_a_convolution_costs_three_times_its_forward(groups):
    module = nn.Conv2d(64, 64, 3, padding=1, groups=groups, bias=False).to("meta")
    image = torch.empty(1, 64, 16, 16, device="meta", requires_grad=True)
    forward = flop_counter.count_step(lambda: module(image)).macs
    both = flop_counter.count_step(lambda: module(image).sum().backward()).macs
    assert forward == 64 * (64 // groups) * 9 * 16 * 16
    assert both == 3 * forward


def test_training_a_backbone():
    spec, resolution = get_spec("sola_t"), Resolution(224, 224)
    workload = build(spec, Settings(mode="train"), "meta")
    step = flop_counter.count_step(workload.step(workload.image(resolution)))
    closed = closed_form(spec, resolution)
    attention = sum(2 * tokens**2 * dim for tokens, dim in ((196, 192), (196, 192), (49, 288)))
    embedding = closed.macs_by_kind["embedding"]
    # products with weights cost twice their forward again, attention 2.5 times; no gradient of the image is wanted
    usual = 3 * closed.macs + attention // 2 - embedding
    # channel mixes of ours keep neither hidden units nor gates: of their 9 products of channels with channels 5 are
    # done again
    assert step.macs == usual + closed.macs_by_kind["channel mix"] * 5 // 9
    # where they are PyTorch's operators these keep both
    elsewhere = build(spec, Settings(mode="train", device="mps"), "meta")
    assert flop_counter.count_step(elsewhere.step(elsewhere.image(resolution))).macs == usual


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::add", "element-wise"),
        ("aten::transpose", "view"),
        ("aten::mean", "reduction"),
        ("aten::native_layer_norm", "normalisation"),
        ("aten::_softmax", "softmax"),
        ("aten::cat", "copy"),
        ("aten::avg_pool2d", "sampling"),
        ("aten::bernoulli_", "random"),
        ("aten::mm", ""),
        ("aten::matmul", ""),
        ("aten::linear", ""),
        ("aten::scaled_dot_product_attention", ""),
        ("aten::no_such_operator", ""),
        ("other::add", ""),
    ],
)
def test_operators_are_only_excused_when_they_are_known(name, kind):
    assert operator_kind(name) == kind
