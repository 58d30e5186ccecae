"""``docs/adding-a-mixer.md`` runs as it stands: one new file and one new line make a mixer."""

import ast
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sola_profile
from sola_profile.study import mixing
from sola_vision import create_model
from sola_vision.backbone_terms import spec_terms
from sola_vision.layers import mixers

PAGE = Path(__file__).parent.parent / "docs" / "adding-a-mixer.md"
FILE, LINE, USE, CHECK, STUDY = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The page's file in a folder of the package and its line in the table; nothing else."""
    (tmp_path / "relu.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(mixers, "__path__", [*mixers.__path__, str(tmp_path)])
    for name, target in ast.literal_eval("{" + LINE + "}").items():
        monkeypatch.setitem(mixers.MIXERS, name, target)
    yield
    sys.modules.pop("sola_vision.layers.mixers.relu", None)


def run(code):
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_page_s_models_run(added):
    made = run(USE)
    image = torch.randn(1, 3, 64, 96)
    for name in ("model", "mixed"):
        scores = made[name].eval()(image)
        assert scores.shape == (1, 1000)
        assert scores.isfinite().all()
    layers = [layer.mixer.name for layer in made["mixed"].spec.layers()]
    assert (layers.count("relu"), layers.count("wkv"), layers.count("softmax")) == (5, 4, 3)


def test_the_page_s_check_passes(added):
    run(CHECK)


def test_the_page_s_check_would_find_a_wrong_count(added, monkeypatch):
    relu = mixers.mixer_class("relu")
    monkeypatch.setattr(relu, "projection_terms", staticmethod(lambda dim, tokens: mixers.base.Terms()))
    with pytest.raises(AssertionError):
        run(CHECK)


def test_a_new_mixer_is_costed_with_the_rest(added):
    with torch.device("meta"):
        model = create_model("sola_t", mixers={"L": "relu"})
    pieces = spec_terms(model.spec, 224, 224)
    assert sum(piece.terms.params for piece in pieces) == sum(parameter.numel() for parameter in model.parameters())
    assert {piece.kind for piece in pieces if piece.place == model.spec.layer("1.1").id} == {"linear", "channel mix"}


def test_the_page_s_matrix_is_the_operator_s(added, monkeypatch):
    monkeypatch.setattr(mixing, "MIXINGS", dict(mixing.MIXINGS))
    spec = replace(run(STUDY)["spec"], dims=(32, 32, 64, 64))
    found = sola_profile.study_model(spec, 64, count=1)
    assert found.agrees
    assert all(layer.matrices for layer in found.sizes[0].layers)
    assert all(depth.apart is not None for depth in found.sizes[0].depths)
    assert any("the decays of ReluAttention are not known" in remark for remark in found.remarks)
    assert sola_profile.place(spec, 64).chosen.pattern


def test_without_the_line_there_is_no_mixer():
    with pytest.raises(ValueError, match="mixers: no mixer is named 'relu'"):
        create_model("sola_t", mixers={"L": "relu"})
