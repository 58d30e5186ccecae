"""The presets against the published sizes, and the neighbours they are compared with."""

import subprocess
import sys

import pytest

from sola_vision import get_spec, list_models
from sola_vision.backbone_terms import spec_terms
from sola_vision.presets import PRESETS, PUBLISHED, twins

PUBLISHED_RESOLUTION = (224, 224)
# widths and depths are fitted: the paper gives T's depths, and no widths
TOLERANCE = 0.03


def test_sizes_are_within_three_percent_of_the_published(capsys):
    rows = []
    for name, published in PUBLISHED.items():
        pieces = spec_terms(get_spec(name), *PUBLISHED_RESOLUTION)
        params_m = sum(piece.terms.params for piece in pieces) / 1e6
        gmacs = sum(piece.terms.total_macs for piece in pieces) / 1e9
        rows.append((name, params_m, published.params_m, gmacs, published.gmacs))
    with capsys.disabled():
        print(f"\n{'':8}{'params M':>10}{'published':>11}{'GMACs':>12}{'published':>11}   at 224 × 224")
        for name, params_m, published_m, gmacs, published_g in rows:
            print(
                f"{name:8}{params_m:10.2f}{published_m:11.2f}{params_m / published_m - 1:+8.1%}"
                f"{gmacs:8.2f}{published_g:8.2f}{gmacs / published_g - 1:+8.1%}"
            )
    assert len(rows) == 3
    for name, params_m, published_m, gmacs, published_g in rows:
        assert params_m == pytest.approx(published_m, rel=TOLERANCE), name
        assert gmacs == pytest.approx(published_g, rel=TOLERANCE), name


@pytest.mark.parametrize("size", ["sola_t", "sola_s", "sola_b"])
@pytest.mark.parametrize(
    ("suffix", "is_softmax"),
    [
        ("linear", lambda stage, layer, depth: False),
        ("softmax", lambda stage, layer, depth: True),
        ("llls", lambda stage, layer, depth: stage == 4),
        ("llss", lambda stage, layer, depth: stage >= 3),
        ("lasthalf", lambda stage, layer, depth: stage >= 3 and layer > depth - depth // 2),
    ],
)
def test_neighbours_move_only_the_softmax_layers(size, suffix, is_softmax):
    base, spec = get_spec(size), get_spec(f"{size}_{suffix}")
    assert (spec.dims, spec.depths, spec.mixers) == (base.dims, base.depths, base.mixers)
    for layer in spec.layers():
        expected = is_softmax(layer.id.stage, layer.id.layer, spec.depths[layer.id.stage - 1])
        assert (layer.mixer.name == "softmax") == expected, layer
    assert set(spec.bridges) <= set(base.bridges)


def test_the_paper_s_wiring():
    for name in PUBLISHED:
        spec = get_spec(name)
        assert [str(bridge) for bridge in spec.bridges] == ["1.2->3.3", "2.2->3.6", "3.2->4.2"]
        assert sum(layer.mixer.name == "softmax" for layer in spec.layers()) >= 3
    assert get_spec("sola_t").pattern == "LL|LL|LLSLLS|LS"


def test_lists_models():
    names = list_models()
    assert names == list(PRESETS)
    assert len(names) == 18
    assert list_models("sola_b") == [name for name in names if name.startswith("sola_b")]
    assert list_models("resnet") == []
    assert all(get_spec(name).name == name for name in names)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("sola-t", "sola_t"), ("solas", "sola_s"), ("SOLA_B", "sola_b"), ("sola_t_liner", "sola_t_linear")],
)
def test_suggests_the_nearest_name(wrong, near):
    with pytest.raises(ValueError, match=f"no preset is named '{wrong}'; did you mean '{near}'[?] Known: sola_t, "):
        get_spec(wrong)


def test_suggests_nothing_for_noise():
    with pytest.raises(ValueError, match=r"no preset is named 'xyz'\. Known: sola_t, "):
        get_spec("xyz")


def test_twins_are_all_linear_and_all_softmax():
    spec = get_spec("sola_t")
    pair = twins(spec)
    assert pair["linear"].pattern == "LL|LL|LLLLLL|LL"
    assert pair["softmax"].pattern == "SS|SS|SSSSSS|SS"
    only_linear = twins(spec.rewired(mixers={"S": "decay"}))
    assert {layer.mixer.name for layer in only_linear["softmax"].layers()} == {"softmax"}
    assert {layer.mixer.name for layer in only_linear["linear"].layers()} == {"wkv"}
    only_softmax = twins(spec.rewired(mixers={"L": "softmax"}))
    assert {layer.mixer.name for layer in only_softmax["linear"].layers()} == {"wkv"}


def test_specs_load_without_torch():
    code = "import sys, sola_vision; sola_vision.get_spec('sola_t'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
