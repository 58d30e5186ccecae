"""Backbone specs: what they accept, what they refuse and with which words."""

from dataclasses import replace

import pytest

from sola_vision import BackboneSpec, Bridge, MixerSpec, PatternError
from sola_vision.spec import LayerId

SPEC = BackboneSpec(
    "small", (32, 64, 96, 128), "LL|LL|(LLS)*2|LS", bridges=("1.2->3.3", ("2.2", "3.6"), Bridge.of("3.2 -> 4.2"))
)


def test_reads_like_the_paper():
    assert SPEC.stages == ("LL", "LL", "LLSLLS", "LS")
    assert SPEC.pattern == "LL|LL|LLSLLS|LS"
    assert SPEC.depths == (2, 2, 6, 2)
    assert [str(bridge) for bridge in SPEC.bridges] == ["1.2->3.3", "2.2->3.6", "3.2->4.2"]
    layers = list(SPEC.layers())
    assert len(layers) == 12
    third = SPEC.layer("3.3")
    assert (str(third.id), third.letter, third.mixer.name, third.dim, third.heads) == ("3.3", "S", "softmax", 96, 3)
    assert [layer.id for layer in layers] == sorted(layer.id for layer in layers)


def test_equal_specs_hash_equal():
    twin = replace(SPEC, pattern="LL|LL|LLSLLS|LS", mixers=dict(reversed(SPEC.mixers.items())))
    assert twin == SPEC
    assert hash(twin) == hash(SPEC)
    assert {SPEC: 1}[twin] == 1
    assert replace(SPEC, num_classes=10) != SPEC


def test_mixers_are_named_or_carry_options():
    spec = replace(SPEC, mixers={"L": ("wkv", {"decay_per": "token"}), "S": "softmax"})
    assert spec.mixers["L"] == MixerSpec("wkv", (("decay_per", "token"),))
    assert str(spec.mixers["L"]) == "wkv(decay_per='token')"
    assert str(spec.mixers["S"]) == "softmax"
    assert MixerSpec.of(spec.mixers["L"]) is spec.mixers["L"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (32, 64, 96)}, "dims: expected 4 widths, got 3"),
        ({"dims": (32, 64, 96, 100)}, "dims: every width must be a positive multiple of head_dim=32, got 100"),
        ({"dims": (32, 64, 96, 0)}, "got 0"),
        ({"dims": (32.0, 64, 96, 128)}, r"got 32\.0"),
        ({"pattern": "LL|LS"}, "pattern: expected 4 stages, got 2 in 'LL|LS'"),
        ({"mixers": {"L": "wkv"}}, "letter 'S' names no mixer; allowed: L"),
        ({"mixers": {"L": "wkv", "S": "softmax", "x": "wkv"}}, "mixers: a key is one letter A-Z, got 'x'"),
        ({"mixers": {"L": "wkv", "S": "softmax", "LL": "wkv"}}, "mixers: a key is one letter A-Z, got 'LL'"),
        ({"head_dim": 0}, "head_dim: expected a whole number of at least 1, got 0"),
        ({"patch_size": 2.5}, "patch_size: expected a whole number"),
        ({"in_channels": 0}, "in_channels: expected"),
        ({"num_classes": -1}, "num_classes: expected a whole number of at least 0, got -1"),
        ({"drop_path": 1.0}, r"drop_path: expected a rate in \[0, 1\), got 1.0"),
        ({"drop_path": "0.1"}, "drop_path: expected a rate"),
        ({"mix_ratio": 0}, "mix_ratio: expected a positive ratio, got 0"),
        ({"mix_ratio": float("nan")}, "mix_ratio: expected a positive ratio"),
        ({"bridges": ("1.3->3.3",)}, "bridges: 1.3->3.3: its source 1.3 is no layer"),
        ({"bridges": ("1.2->5.1",)}, "bridges: 1.2->5.1: its target 5.1 is no layer"),
        ({"bridges": ("4.1->3.3",)}, "its source must come before its target"),
        ({"bridges": ("3.3->3.3",)}, "its source must come before its target"),
        ({"bridges": ("3.3->3.6",)}, "its source 3.3 is a softmax layer, which keeps no state"),
        ({"bridges": ("1.2->3.2",)}, "its target 3.2 is wkv, not softmax"),
        ({"bridges": ("1.2->3.3", "1.2->3.3")}, "bridges: 1.2->3.3: it is wired twice"),
        ({"bridges": ("1.2-3.3",)}, "bridges: expected 'source->target' such as '1.2->3.3', got '1.2-3.3'"),
        ({"bridges": (7,)}, "bridges: expected 'source->target'"),
        ({"bridges": ("1->3.3",)}, "bridges: expected 'source->target' such as '1.2->3.3', got '1->3.3'"),
        ({"bridges": ("a.b->3.3",)}, "bridges: expected 'source->target'"),
    ],
)
def test_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        replace(SPEC, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": 32}, r"dims: expected 4 widths such as .*, got 32"),
        ({"dims": "32"}, r"dims: expected 4 widths such as .*, got '32'"),
        ({"dims": (True, 64, 96, 128), "head_dim": 1}, "dims: every width .*, got True"),
        ({"shift": "no"}, "shift: expected True or False, got 'no'"),
        ({"shift": 1}, "shift: expected True or False, got 1"),
        ({"mix_ratio": True}, "mix_ratio: expected a positive ratio, got True"),
        ({"mixers": {1: "wkv", "S": "softmax"}}, "mixers: a key is one letter A-Z, got 1"),
        ({"mixers": {"L": ("wkv", {1: 2, "shift": True})}}, "mixers: expected options by name"),
        ({"mixers": None}, "mixers: expected a mapping .*, got None"),
        ({"bridges": None}, "bridges: expected a list .*, got None"),
        ({"bridges": "1.1->3.3"}, "bridges: expected a list .*, got '1.1->3.3'"),
        ({"bridges": ["a->b"]}, "bridges: expected 'source->target' such as .*, got 'a->b'"),
        ({"bridges": ["1->3"]}, "bridges: expected 'source->target' such as .*, got '1->3'"),
        ({"bridges": [("1.2",)]}, "bridges: expected 'source->target'"),
        ({"bridges": [3]}, "bridges: expected 'source->target' .*, got 3"),
    ],
)
def test_refuses_what_is_of_another_kind(changes, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        replace(SPEC, **changes)


def test_refuses_a_mixer_that_is_neither_name_nor_options():
    with pytest.raises(TypeError, match=r"mixers: expected a name or \(name, options\), got 3"):
        replace(SPEC, mixers={"L": 3, "S": "softmax"})


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match=r"layer: small has no layer 3\.7; its pattern is LL\|LL\|LLSLLS\|LS"):
        SPEC.layer("3.7")
    assert SPEC.layer((4, 2)).id == LayerId(4, 2)


def test_another_pattern_keeps_the_bridges_that_fit():
    assert SPEC.with_pattern("LL|LL|LSLLLS|LS").bridges == SPEC.bridges[1:2]
    assert SPEC.with_pattern("LL|LL|LLLLLL|LL").bridges == ()
    assert SPEC.with_pattern("SS|SS|LLSLLS|LS").bridges == SPEC.bridges[2:]
    named = SPEC.with_pattern("LL|LL|SSSSSS|SS", name="other")
    assert (named.name, named.pattern) == ("other", "LL|LL|SSSSSS|SS")
    assert SPEC.with_pattern(SPEC.pattern) == SPEC


def test_another_pattern_keeps_the_depths():
    with pytest.raises(PatternError, match="stage 3 has 5 layers where the backbone has 6"):
        SPEC.with_pattern("LL|LL|LLSLL|LS")


def test_pattern_and_mixers_change_together():
    spec = SPEC.rewired(pattern="LL|LL|LLALLA|LA", mixers={"S": "linear", "A": "softmax"})
    assert spec.bridges == SPEC.bridges
    assert [mixer.name for mixer in spec.mixers.values()] == ["softmax", "wkv", "linear"]
    assert SPEC.rewired(mixers={"S": "linear"}).bridges == ()


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]),
        ((512, 768), [(128, 192), (64, 96), (32, 48), (16, 24)]),
        ((225, 1), [(57, 1), (29, 1), (15, 1), (8, 1)]),
        ((1333, 800), [(334, 200), (167, 100), (84, 50), (42, 25)]),
    ],
)
def test_token_grids_round_up(size, grids):
    assert SPEC.token_grids(*size) == tuple(grids)


def test_an_image_has_pixels():
    with pytest.raises(ValueError, match="width: expected at least 1 pixel, got 0"):
        SPEC.token_grids(4, 0)
