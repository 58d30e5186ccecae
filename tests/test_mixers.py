"""The mixers against their definitions, their options, and the table that names them."""

# B batch, N tokens, C channels, H heads, D head dim

import pytest
import torch
from tolerances import check_close
from torch.nn import functional as F

from sola_vision import BackboneSpec, MixerSpec, ops
from sola_vision.layers.mixers import MIXERS, list_mixers, mixer_class, mixer_options
from sola_vision.layers.mixers.linear import rotary_attention, rotate, rotation_tables
from sola_vision.ops import reference

DIM, HEADS, GRID = 16, 2, (3, 5)
SPEC = BackboneSpec("tiny", (16, 16, 16, 16), "L|L|L|S", head_dim=8)
CASES = [
    ("wkv", {}),
    ("wkv", {"shift": False}),
    ("wkv", {"decay_per": "token"}),
    ("softmax", {}),
    ("linear", {}),
    ("linear", {"rope": False}),
    ("linear", {"lepe": False}),
    ("decay", {}),
]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=str)


def build(name, options, *, depth=0.4, dtype=torch.float64):
    torch.manual_seed(0)
    mixer = mixer_class(name)(DIM, HEADS, **options).to(dtype)
    mixer.init_weights(depth)
    return mixer


def tokens():
    return torch.randn(2, GRID[0] * GRID[1], DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def same(got, exact):
    check_close("mixer", [got], [exact], [exact], torch.float64)


def heads(x):
    return x.view(2, -1, HEADS, DIM // HEADS)


def split(mixer, x):
    return [heads(part) for part in (x @ mixer.qkv.weight.T).chunk(3, -1)]


def test_every_case_of_the_table_is_tested():
    assert {name for name, _ in CASES} == set(MIXERS) == set(list_mixers())


@pytest.mark.parametrize("decay_per", ["sequence", "token"])
def test_wkv_is_its_formula(decay_per):
    mixer, x = build("wkv", {"decay_per": decay_per}), tokens()
    for_key, for_value, for_receptance = mixer.mix(x, GRID)
    k, v = for_key @ mixer.key.weight.T, for_value @ mixer.value.weight.T
    state = reference.wkv(k, v, mixer.decay, mixer.bonus, decay_per=decay_per)
    gated = torch.sigmoid(for_receptance @ mixer.receptance.weight.T) * state
    out, got_state = mixer(x, GRID)
    same(got_state, state)
    same(out, gated @ mixer.output.weight.T)


def test_wkv_reaches_a_share_of_the_image_or_a_number_of_tokens():
    """Only with a decay per token does the reach stay when the image grows."""
    per_sequence, per_token = build("wkv", {}), build("wkv", {"decay_per": "token"})
    assert per_sequence.decay.min() < 0
    assert per_token.decay.min() > 0
    k = torch.zeros(1, 400, DIM, dtype=torch.float64)
    v = torch.zeros(1, 400, DIM, dtype=torch.float64)
    v[:, 0] = 1

    def share_at(mixer, count):
        # weight of token 0 in the average at token 20, over its weight in the average at token 10
        state = ops.wkv(k[:, :count], v[:, :count], mixer.decay, mixer.bonus, decay_per=mixer.decay_per)
        return (state[0, 20] / state[0, 10]).log()

    unchanged = share_at(per_token, 400) / share_at(per_token, 200)
    stretched = share_at(per_sequence, 400) / share_at(per_sequence, 200)
    fast = per_token.decay > 0.3
    same(unchanged[fast], torch.ones_like(unchanged[fast]))
    assert (stretched < 0.7).any()


def test_softmax_is_its_formula():
    mixer, x = build("softmax", {}), tokens()
    q, k, v = (part.transpose(1, 2) for part in split(mixer, x))
    attended = torch.softmax(q @ k.mT / (DIM // HEADS) ** 0.5, -1) @ v
    out, state = mixer(x, GRID)
    assert state is None
    same(out, attended.transpose(1, 2).flatten(2) @ mixer.output.weight.T)


def dense_rotary(q, k, v):
    """Rotation by explicit angles; numerator rotated, denominator not; quadratic."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    quarter = q.size(-1) // 4
    row, column = (place.flatten() for place in torch.meshgrid(*map(torch.arange, GRID), indexing="ij"))
    frequency = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.cat((row[:, None] * frequency, column[:, None] * frequency), -1)[None, :, None]

    def turn(x):
        pairs = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((pairs.real, pairs.imag), -1)

    weights = torch.einsum("bnhd,bmhd->bhnm", turn(q), turn(k))
    # the mean over the keys of the weights, with the term against division by zero
    normaliser = torch.einsum("bnhd,bmhd->bhnm", q, k).sum(-1, keepdim=True) + 1e-6 * k.size(1)
    return torch.einsum("bhnm,bmhd->bnhd", weights / normaliser, v)


@pytest.mark.parametrize("lepe", [True, False])
@pytest.mark.parametrize("rope", [True, False])
def test_linear_is_its_formula(rope, lepe):
    mixer, x = build("linear", {"rope": rope, "lepe": lepe}), tokens()
    q, k, v = split(mixer, x)
    expected = (dense_rotary(q, k, v) if rope else reference.linear_attention(q, k, v)).flatten(2)
    out, state = mixer(x, GRID)
    same(state, expected)
    if lepe:
        image = v.flatten(2).view(2, *GRID, DIM).permute(0, 3, 1, 2)
        state = state + mixer.lepe(image).flatten(2).transpose(1, 2)
    same(out, state @ mixer.output.weight.T)


def test_rotation_depends_on_the_offset_alone():
    """⟨ρ_p(a), ρ_q(b)⟩ is the same for all pairs of places with one offset, and differs between offsets."""
    rows, columns = 4, 6
    a, b = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, rows * columns, 1, 8)
    cosine, sine = rotation_tables(a, (rows, columns), scale=1.0)
    products = torch.einsum("nd,md->nm", rotate(a, cosine, sine)[0, :, 0], rotate(b, cosine, sine)[0, :, 0])
    products = products.view(rows, columns, rows, columns)
    same(products[1, 2, 3, 5], products[0, 0, 2, 3])
    same(products[2, 4, 1, 1], products[1, 3, 0, 0])
    assert not torch.isclose(products[0, 0, 1, 0], products[0, 0, 0, 1])
    assert not torch.isclose(products[0, 0, 1, 0], products[1, 0, 0, 0])


def test_rotary_attention_stays_finite_in_half_precision():
    grid = (256, 256)
    q, k, v = torch.randn(3, 1, grid[0] * grid[1], 1, 32, generator=torch.Generator().manual_seed(0))
    exact = rotary_attention(*(x.double() for x in (q, k, v)), grid)
    half = rotary_attention(*(x.half() for x in (q, k, v)), grid)
    rounded = rotary_attention(*(x.half().double() for x in (q, k, v)), grid)
    check_close("rotary", [half], [rounded], [exact], torch.float16, conditioning=4.0)


def test_decay_is_its_formula():
    mixer, x = build("decay", {}), tokens()
    q, k, v = split(mixer, x)
    rate = torch.exp(-torch.exp(mixer.log_rate))
    same(rate, 1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64)))
    expected = reference.linear_attention(q, k, v, decay=rate).flatten(2)
    out, state = mixer(x, GRID)
    same(state, expected)
    same(out, expected @ mixer.output.weight.T)


@cases
def test_gradients_reach_every_parameter(name, options):
    mixer = build(name, options)
    out, _ = mixer(tokens(), GRID)
    out.square().sum().backward()
    for parameter_name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_runs_in_every_dtype(name, options, dtype):
    exact, _ = build(name, options)(tokens(), GRID)
    low = build(name, options, dtype=dtype)
    out, _ = low(tokens().to(dtype), GRID)
    assert out.dtype == dtype
    # what rounding the weights and the input costs, without any rounding in between
    rounded, _ = low.double()(tokens().to(dtype).double(), GRID)
    check_close(name, [out], [rounded], [exact], dtype, conditioning=4.0)


@cases
def test_projections_are_views_of_one_product(name, options):
    mixer = build(name, options)
    if hasattr(mixer, "project"):
        q, k, v = mixer.project(tokens())
        assert len({part.untyped_storage().data_ptr() for part in (q, k, v)}) == 1
        assert sum(p.numel() for p in (mixer.qkv.weight, mixer.output.weight)) == 4 * DIM * DIM
    else:
        assert sum(p.numel() for p in mixer.parameters() if p.dim() == 2 and p.size(0) == DIM) == 4 * DIM * DIM


@pytest.mark.parametrize(
    ("name", "arguments", "options", "message"),
    [
        ("wkv", (16, 2), {"decay_per": "image"}, "decay_per: expected one of sequence, token, got 'image'"),
        ("linear", (16, 8), {}, "rope: needs a head dim that is a multiple of 4, got 2"),
        ("softmax", (16, 3), {}, "heads: expected a divisor of dim=16, got 3"),
        ("decay", (512, 1), {}, "head_dim: expected at most 256, got 512"),
    ],
)
def test_refuses_bad_sizes_and_options(name, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        mixer_class(name)(*arguments, **options)


def test_names_and_options_are_checked_against_the_table():
    with pytest.raises(ValueError, match="mixers: no mixer is named 'wvk'; did you mean 'wkv'"):
        mixer_class("wvk")
    with pytest.raises(ValueError, match="mixers: wkv has no option 'decay_pr'; did you mean 'decay_per'"):
        mixer_options(MixerSpec("wkv", (("decay_pr", "token"),)), SPEC)
    with pytest.raises(ValueError, match=r"mixers: softmax has no option 'rope'\. Known: none"):
        mixer_options(MixerSpec("softmax", (("rope", True),)), SPEC)


def test_shift_follows_the_spec_unless_the_mixer_is_told_otherwise():
    assert mixer_options(MixerSpec("wkv"), SPEC) == {"shift": True}
    assert mixer_options(MixerSpec("wkv", (("shift", False),)), SPEC) == {"shift": False}
    assert mixer_options(MixerSpec("linear"), SPEC) == {}
