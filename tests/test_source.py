"""Names of models: presets, timm, torchvision, factories; and shapes of their inputs."""

import sys

import pytest
import torch
from torch import nn

from sola_profile.case import Resolution
from sola_profile.source import DEFAULT_INPUT, InputShape, read_source
from sola_vision import get_spec


def test_a_preset_has_its_spec_and_its_pattern_can_be_changed():
    assert read_source("sola_t").spec.pattern == "LL|LL|LLSLLS|LS"
    assert read_source("sola_t", "L*2|L*2|L*6|L*2").name == "sola_t[LL|LL|LLLLLL|LL]"


def test_a_model_on_a_backbone_fetches_no_weights(monkeypatch):
    def fetch(*_, **__):
        raise AssertionError("weights are fetched")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    assert read_source("torchvision:lraspp_mobilenet_v3_large").build().classifier.cbr


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_models_of_the_zoos_are_built_in_evaluation_mode(name):
    source = read_source(name)
    assert (source.called, source.spec) == ("resnet18", None)
    model = source.build()
    assert isinstance(model, nn.Module)
    assert not model.training


def test_a_vision_transformer_takes_any_size_unless_one_is_asked_for():
    source = read_source("timm:vit_tiny_patch16_224")
    assert source.build().dynamic_img_size
    assert source.build(Resolution(96, 160)).patch_embed.grid_size == (6, 10)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "ready = nn.Conv2d(3, 4, 2)\n"
        "sized = lambda img_size=(1, 1): nn.Linear(*img_size)\n"
        "number = lambda: 3\n"
        "wanting = lambda width: nn.Identity()\n"
        "from sola_vision import get_spec\n"
        "spec = get_spec('sola_t')\n"
        "make_spec = lambda: spec\n"
        "class Zoo:\n"
        "    class Net(nn.Identity): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_models", None)


@pytest.mark.usefixtures("user_module")
def test_a_factory_is_a_function_a_class_or_a_module_of_the_current_folder():
    assert isinstance(read_source("my_models:ready").build(), nn.Conv2d)
    assert type(read_source("my_models:Zoo.Net").build()).__name__ == "Net"
    assert read_source("my_models:sized").build(Resolution(5, 7)).in_features == 5
    assert read_source("my_models:spec").build().spec == read_source("my_models:make_spec").build().spec
    assert read_source("my_models:spec").spec == get_spec("sola_t")
    with pytest.raises(ValueError, match=r"my_models:wanting can't be built without arguments .*'width'"):
        read_source("my_models:wanting").build()
    with pytest.raises(ValueError, match="my_models:number gave int, not a torch"):
        read_source("my_models:number").build()
    with pytest.raises(ValueError, match="my_models has no 'redy'; did you mean 'ready'"):
        read_source("my_models:redy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = unknown",
            r"importing 'my_failing' failed: NameError: name 'unknown' is not defined \(.*my_failing.py:1\)",
        ),
        ("def f(:", r"importing 'my_failing' failed: SyntaxError: .*\(my_failing.py, line 1\)"),
        ("raise SystemExit(2)", "importing 'my_failing' failed: it ended the process with status 2"),
    ],
)
def test_a_module_that_fails_is_named_with_the_line(text, message, tmp_path, monkeypatch):
    (tmp_path / "my_failing.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValueError, match=message):
        read_source("my_failing:make")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sola_x", "did you mean 'sola_t'"),
        ("resnet18", "timm:NAME, torchvision:NAME and package.module:factory work too"),
        ("timm:resnet81", "^model: timm has no model 'resnet81'; did you mean 'resnet18'"),
        ("torchvision:resnet81", "^model: torchvision has no model 'resnet81'; did you mean 'resnet18'"),
        ("no_such_package:net", "can't import 'no_such_package'"),
        ("a-b:c", "expected package.module:factory, got 'a-b:c'"),
    ],
)
def test_a_wrong_name_is_explained(name, message):
    with pytest.raises(ValueError, match=message):
        read_source(name)


def test_a_pattern_is_for_presets_only():
    with pytest.raises(ValueError, match="--pattern changes the layers of a preset"):
        read_source("timm:resnet18", "L|L|L|L")


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm:NAME needs timm, and timm isn't installed; pip install timm"):
        read_source("timm:resnet18")


def test_input_shapes():
    shape = InputShape.parse("2x16xHxWx3")
    assert shape.at(5, 7) == (2, 16, 5, 7, 3)
    assert shape.batch == 2
    assert str(InputShape()) == DEFAULT_INPUT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1x3x224x224", "the letters H and W once each"),
        ("1x3xHxH", "the letters H and W once each"),
        ("HxWx3", "expected the batch first"),
        ("1x0xHxW", "expected a shape such as 1x3xHxW"),
        ("1,3,H,W", "expected a shape such as 1x3xHxW"),
    ],
)
def test_a_wrong_shape_is_explained(text, message):
    with pytest.raises(ValueError, match=message):
        InputShape.parse(text)
