"""Closed-form terms against what the modules hold and what torch counts on the meta device, exactly."""

from functools import cache

import pytest
import sympy
import torch
from torch.utils.flop_counter import FlopCounterMode

from sola_vision import create_model, get_spec, list_models
from sola_vision.backbone_terms import KINDS, spec_terms, spec_terms_tokens
from sola_vision.layers.mixers import MIXERS, mixer_class
from sola_vision.ops.linear_attention import CHUNK
from sola_vision.spec import BackboneSpec, LayerId
from sola_vision.terms import Terms, total

RESOLUTIONS = [(224, 224), (512, 768), (1024, 1024)]
# an odd resolution: padding everywhere
ODD = (333, 129)


def meta_model(model, **options):
    with torch.device("meta"):
        return create_model(model, **options).eval()


@cache
def preset(name):
    return meta_model(name)


def counted_macs(module, *inputs):
    """Half the FLOPs that torch counts for one image on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def image(height, width, channels=3):
    return torch.empty(1, channels, height, width, device="meta")


def params(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("resolution", RESOLUTIONS, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("name", list_models())
def test_presets_cost_what_they_state(name, resolution):
    terms = total(*(piece.terms for piece in spec_terms(get_spec(name), *resolution)))
    assert terms.params == params(preset(name))
    assert terms.total_macs == counted_macs(preset(name), image(*resolution))


VARIANTS = [
    {"mixers": {"L": "linear"}},
    {"mixers": {"L": ("linear", {"rope": False, "lepe": False})}},
    {"mixers": {"L": "decay"}},
    {"mixers": {"L": ("wkv", {"decay_per": "token", "shift": False})}},
    {"num_classes": 0, "in_channels": 5},
    {"bridges": []},
    {"bridges": ["3.1->3.3", "1.1->4.2", "2.2->4.2"]},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_variants_cost_what_they_state(options):
    model = meta_model("sola_t", **options)
    terms = total(*(piece.terms for piece in spec_terms(model.spec, *ODD)))
    assert terms.params == params(model)
    assert terms.total_macs == counted_macs(model, image(*ODD, model.spec.in_channels))


def test_unusual_widths_cost_what_they_state():
    spec = BackboneSpec(
        "odd", (24, 40, 56, 72), "LS|L|SL|S", head_dim=8, mix_ratio=2.7, shift=False, patch_size=7, bridges=["1.1->4.1"]
    )
    terms = total(*(piece.terms for piece in spec_terms(spec, *ODD)))
    model = meta_model(spec)
    assert (terms.params, terms.total_macs) == (params(model), counted_macs(model, image(*ODD)))


MIXER_OPTIONS = [
    ("wkv", {}),
    ("wkv", {"shift": False}),
    ("softmax", {}),
    ("linear", {}),
    ("linear", {"rope": False}),
    ("linear", {"lepe": False}),
    ("decay", {}),
]


@pytest.mark.parametrize(("name", "options"), MIXER_OPTIONS, ids=str)
@pytest.mark.parametrize("grid", [(8, 8), (9, 15), (1, 1), (2, 32)], ids=str)
def test_mixers_cost_what_they_state(name, options, grid):
    count = grid[0] * grid[1]
    with torch.device("meta"):
        mixer = mixer_class(name)(64, 2, **options)
        terms = mixer_class(name).terms(64, 2, count, **options)
        assert terms.params == params(mixer)
        assert terms.total_macs == counted_macs(mixer, torch.empty(1, count, 64), grid)
    assert all(value >= 0 for value in terms.scalar_ops.values())


def test_every_mixer_is_counted():
    assert {name for name, _ in MIXER_OPTIONS} == set(MIXERS)


def test_every_piece_costs_what_its_module_does():
    """Piece by piece, so that errors that cancel are found too."""
    spec = get_spec("sola_t").rewired(mixers={"L": "linear"})
    model = meta_model(spec)
    with torch.no_grad(), FlopCounterMode(display=False, depth=None) as counter:
        model(image(*ODD))
    counts = {module: sum(flops.values()) // 2 for module, flops in counter.get_flop_counts().items()}
    seen = set()
    for piece in spec_terms(spec, *ODD):
        if isinstance(piece.place, LayerId):
            block = f"Backbone.stages.{piece.place.stage - 1}.blocks.{piece.place.layer - 1}"
            module = f"{block}.channel_mix" if piece.kind == "channel mix" else f"{block}.mixer"
        elif piece.kind == "bridge":
            module = "Backbone.bridges." + piece.place.replace("->", "_to_").replace(".", "_")
        elif piece.kind == "merging":
            module = f"Backbone.stages.{int(piece.place.split()[1]) - 1}.merging"
        else:
            module = f"Backbone.{piece.place}"
        assert counts[module] == piece.terms.total_macs, module
        seen.add(module)
    assert len(seen) == len(spec_terms(spec, *ODD)) == 1 + 3 + 2 * 12 + 3 + 1


def test_pieces_come_in_the_order_they_run():
    pieces = spec_terms(get_spec("sola_t"), 224, 224)
    places = [str(piece.place) for piece in pieces if piece.kind != "channel mix"]
    assert places == [
        *("embedding", "1.1", "1.2", "merging 2", "2.1", "2.2", "merging 3", "3.1", "3.2", "1.2->3.3", "3.3"),
        *("3.4", "3.5", "2.2->3.6", "3.6", "merging 4", "4.1", "3.2->4.2", "4.2", "head"),
    ]
    assert {piece.kind for piece in pieces} == set(KINDS)
    assert {str(piece.place) for piece in pieces if piece.kind == "softmax"} == {"3.3", "3.6", "4.2"}


@pytest.mark.parametrize("name", ["wkv", "linear", "decay"])
def test_symbolic_tokens_give_the_same_numbers(name):
    """The formula in symbols, at numbers of tokens that fill whole chunks, is the formula in numbers."""
    spec = get_spec("sola_t").rewired(mixers={"L": name})
    symbols = sympy.symbols("n1:5", positive=True, integer=True)
    symbolic = total(*(piece.terms for piece in spec_terms_tokens(spec, symbols)))
    counts = [CHUNK * factor for factor in (64, 16, 4, 1)]
    numeric = total(*(piece.terms for piece in spec_terms_tokens(spec, counts)))
    values = dict(zip(symbols, counts, strict=True))
    assert sympy.expand(symbolic.total_macs).subs(values) == numeric.total_macs
    assert symbolic.params == numeric.params
    assert {key: sympy.sympify(value).subs(values) for key, value in symbolic.scalar_ops.items()} == numeric.scalar_ops


def test_softmax_is_the_only_quadratic_kind():
    n = sympy.Symbol("n", positive=True, integer=True)
    degrees = {}
    for mixer in ("wkv", "linear", "decay"):
        for piece in spec_terms_tokens(get_spec("sola_t").rewired(mixers={"L": mixer}), (64 * n, 16 * n, 4 * n, n)):
            degree = sympy.degree(sympy.expand(piece.terms.total_macs), n)
            degrees.setdefault(piece.kind, set()).add(degree)
    assert degrees.pop("softmax") == {2}
    # the classifier sees one averaged token
    assert degrees.pop("head") == {0}
    assert set(degrees) == set(KINDS) - {"softmax", "head"}
    assert all(found == {1} for found in degrees.values())


def test_one_number_of_tokens_per_stage():
    with pytest.raises(ValueError, match="tokens: expected 4 numbers, one per stage, got 3"):
        spec_terms_tokens(get_spec("sola_t"), (4, 2, 1))


def test_terms_add_by_name():
    left = Terms({"a": 1, "b": 2}, {"exp": 3}, 4)
    right = Terms({"b": 5, "c": 6}, {"norm": 7}, 8)
    assert total(left, right) == Terms({"a": 1, "b": 7, "c": 6}, {"exp": 3, "norm": 7}, 12)
    assert (total().total_macs, total().total_scalar_ops, total().params) == (0, 0, 0)
    assert ((left + right).total_macs, (left + right).total_scalar_ops) == (14, 10)


def test_scalar_operations_of_mixers_by_hand():
    """Width 2 in one head of dim 2: every count can be read off the formulas."""
    assert mixer_class("softmax").terms(2, 1, 1).scalar_ops == {"exp": 1, "softmax": 4 + 2}
    gate = {"exp": 2, "activation": 4}
    assert mixer_class("wkv").terms(2, 1, 1, shift=False).scalar_ops == {**gate, "elementwise": 2, "wkv": 58}
    assert mixer_class("wkv").terms(2, 1, 1).scalar_ops == {**gate, "elementwise": 3 * 3 * 2 + 2, "wkv": 58}
    # three tokens: six elements of q and of k, nine pairs in the only chunk
    kernel = {"exp": 12, "activation": 24, "normaliser": 24}
    assert mixer_class("decay").terms(2, 1, 3).scalar_ops == {**kernel, "decay": 9 + 24}
    assert mixer_class("linear").terms(2, 1, 3, rope=False, lepe=False).scalar_ops == kernel
    assert mixer_class("linear").terms(2, 1, 3).scalar_ops == {**kernel, "rotation": 36, "elementwise": 12}


def test_scalar_operations_around_the_mixers_by_hand():
    # a 16-pixel image is one token of every stage but the first, which has four
    spec = BackboneSpec("hand", (2, 2, 2, 2), "L|L|L|LS", head_dim=2, bridges=["1.1->4.2"], num_classes=3, patch_size=8)
    pieces = {(str(piece.place), piece.kind): piece.terms.scalar_ops for piece in spec_terms(spec, 16, 16)}
    # bias and norm of four tokens of width 2; the norm of the four neighbours that merge
    assert pieces["embedding", "embedding"] == {"elementwise": 8, "norm": 56}
    assert pieces["merging 2", "merging"] == {"norm": 56}
    # norm, sum with the input, two mixes, squared ReLU of width 8, gate
    assert pieces["4.1", "channel mix"] == {"norm": 14, "elementwise": 2 + 12 + 2, "activation": 16 + 4, "exp": 2}
    # eight elements of the state are averaged, two are gated and added
    assert pieces["1.1->4.2", "bridge"] == {"elementwise": 8 + 2 + 2, "exp": 2, "activation": 4}
    # norm, mean, bias of three classes
    assert pieces["head", "head"] == {"norm": 14, "elementwise": 2 + 3}
