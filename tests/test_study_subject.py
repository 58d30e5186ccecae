"""What a study and a placement take: presets, backbones of the user's own, trained weights; and what they say otherwise."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from schemas import conforming
from study_models import TINY
from torch import nn

import sola_profile
from sola_profile.case import Resolution
from sola_profile.report.study import headline
from sola_profile.study import instruments
from sola_profile.study.images import Samples
from sola_profile.study.subject import read_subject
from sola_profile.study.weights import Weights, fresh_model, with_weights
from sola_vision import create_model, save_weights
from sola_vision.train import Output, TrainConfig, proxy_config, train

SMALL = replace(TINY, name="small", pattern="L|L|S|D")
TASK = "task:match:patch=4,d=8,distractors=1"


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch):
    """The horizon at the size that is asked for alone."""
    monkeypatch.setattr(instruments, "HORIZON_SIZES", ())


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own in the current folder."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from torch import nn\n"
        "import sola_vision\n"
        "from study_models import TINY\n"
        "spec = replace(TINY, name='small', pattern='L|L|S|D')\n"
        "def make():\n"
        "    model = sola_vision.create_model(spec)\n"
        "    model.embedding.requires_grad_(False)\n"
        "    return model\n"
        "def segmenter():\n"
        "    return nn.ModuleDict({'backbone': make(), 'head': nn.Identity()})\n"
        "def sized(width): return make()\n"
        "def broken(): raise RuntimeError('no such file')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A training run of two steps, whose task has two classes."""
    folder = tmp_path_factory.mktemp("run")
    train(TrainConfig(SMALL, TASK, size=16, steps=2, batch=2, eval_size=2, output=Output(folder)))
    return folder


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("name", ["mine:make", "mine:spec"])
def test_a_backbone_of_the_user_s_own_is_studied(sola_profile, name):
    code, printed, err = sola_profile("study", "--model", name, "--res", "32", "--count", "1")
    assert (code, "matrices of layer 4.1 (D)" in err) == (0, True)
    assert f"small at 32, weights as in {name}, images: objects 1" in printed


@pytest.mark.usefixtures("mine")
def test_a_notebook_takes_the_same_name_and_gets_the_same_weights():
    first, second = (sola_profile.study_model("mine:make", 32, count=1) for _ in range(2))
    assert first.sizes[0].depths == second.sizes[0].depths
    assert "weights as in mine:make" in headline(first)
    assert "weights as in the given model" in headline(sola_profile.study_model(create_model(SMALL), 32, count=1))


@pytest.mark.usefixtures("mine")
def test_another_pattern_of_a_factory_has_fresh_weights():
    subject = read_subject("mine:make", "L|L|D|S")
    model, weights = subject.model()
    assert (subject.base.pattern, model.spec.pattern) == ("L|L|S|D", "L|L|D|S")
    assert model.spec.name == "small[L|L|D|S]"
    assert str(weights) == "fresh weights, seed 0"


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("timm:resnet18", "whose spec says by what mixer every layer moves information; timm:resnet18 isn't one"),
        ("mine:segmenter", "mine:segmenter gave ModuleDict, whose part 'backbone' is one: give that"),
        ("mine:sized", "mine:sized can't be built without arguments (missing a required argument: 'width')"),
        ("mine:broken", "mine:broken can't be built: RuntimeError: no such file"),
        ("mine:number", "mine:number gave int, not a torch.nn.Module or a BackboneSpec"),
        ("mine:mak", "mine has no 'mak'; did you mean 'make'"),
        ("sola_x", "package.module:factory works too"),
    ],
)
def test_what_is_no_backbone_is_explained(sola_profile, name, sentence):
    code, _, err = sola_profile("study", "--model", name)
    assert code == 2
    assert sentence in " ".join(err.replace("│", " ").split())


def test_a_module_in_a_notebook_is_explained():
    with pytest.raises(TypeError, match="got Sequential, whose part '1' is one: give that"):
        sola_profile.study_model(nn.Sequential(nn.Identity(), create_model(SMALL)))


def test_weights_of_a_training_run_are_studied_whatever_its_classes(sola_profile, mine, run_folder):
    code, printed, _ = sola_profile(
        *("study", "--model", "mine:spec", "--weights", str(run_folder / "model.safetensors"), "--res", "16"),
        *("--images", TASK, "--count", "2"),
    )
    assert code == 0
    assert "weights of model.safetensors (sha256 " in printed
    assert f"images: 2 of {TASK}" in " ".join(printed.split())


def test_a_checkpoint_has_the_weights_of_its_step(sola_profile, mine, run_folder):
    code, printed, _ = sola_profile(
        *("study", "--model", "mine:spec", "--weights", str(run_folder / "checkpoint.pt"), "--res", "16"),
        *("--count", "1", "--json", "-"),
    )
    assert code == 0
    document = conforming("study", printed)
    assert (document["weights"], document["weights_step"]) == ("checkpoint.pt", 2)
    (saved, _), (kept, source) = (with_weights(SMALL, run_folder / n) for n in ("model.safetensors", "checkpoint.pt"))
    assert str(source).startswith("weights of checkpoint.pt behind step 2 (sha256 ")
    assert all(torch.equal(value, kept.state_dict()[key]) for key, value in saved.state_dict().items())
    fresh = fresh_model(SMALL).state_dict()
    assert not torch.equal(fresh["stages.2.blocks.0.mixer.qkv.weight"], kept.stages[2].blocks[0].mixer.qkv.weight)


@pytest.mark.parametrize("head", [{"features_only": True}, {"num_classes": 0}, {"num_classes": 7}])
def test_weights_are_read_whatever_head_they_have(tmp_path, head):
    model = create_model(SMALL, **head)
    save_weights(model, tmp_path / "saved.safetensors")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    for name in ("saved.safetensors", "plain.pt"):
        read, source = with_weights(SMALL, tmp_path / name)
        assert read.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in read.state_dict().items())
        assert (source.name, source.step) == (name, None)


def test_wrong_weights_are_explained(tmp_path, run_folder):
    with pytest.raises(ValueError, match=r"can't read .*: Is a directory; it holds model\.safetensors, checkpoint\.pt"):
        with_weights(SMALL, run_folder)
    torch.save(create_model(replace(SMALL, pattern="L|L|D|S")).state_dict(), tmp_path / "pattern.pt")
    with pytest.raises(ValueError, match=r"pattern\.pt doesn't fit small: [\s\S]*Missing key"):
        with_weights(SMALL, tmp_path / "pattern.pt")
    with pytest.raises(ValueError, match=r"'L\|L\|S\|D' in the file, 'L\|L\|D\|S' in the model"):
        with_weights(replace(SMALL, pattern="L|L|D|S"), run_folder / "model.safetensors")
    torch.save({"steps": 3}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no weights; expected a state dict, or one under the key 'model'"):
        with_weights(SMALL, tmp_path / "other.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(ValueError, match=r"broken\.pt is no checkpoint"):
        with_weights(SMALL, tmp_path / "broken.pt")


def test_weights_in_words():
    assert str(Weights()) == "fresh weights, seed 0"
    assert str(Weights("a.pt", "0123456789abcdef", 1200)) == "weights of a.pt behind step 1,200 (sha256 0123456789ab)"


def test_images_of_a_task_are_those_of_its_evaluation():
    samples = Samples.of(3, TASK)
    assert samples.names == ("match 1", "match 2", "match 3")
    samples.check(3, [Resolution(16, 16), Resolution(24, 24)])
    images = [samples.load(number, 3, Resolution(16, 16)) for number in range(2)]
    assert not torch.equal(*images)
    assert images[0].shape == (1, 3, 16, 16)
    for sizes, channels, message in (
        ([Resolution(16, 16), Resolution(16, 24)], 3, "those of a task are square, got 16x24"),
        ([Resolution(8, 8)], 3, "at 8: size: expected a whole number from 16"),
        ([Resolution(16, 16)], 1, "those of a task have 3 channels, the model takes 1"),
    ):
        with pytest.raises(ValueError, match=message):
            samples.check(channels, sizes)
    with pytest.raises(ValueError, match="no task is named 'mach'"):
        Samples.of(1, "task:mach").check(3, [Resolution(16, 16)])


def test_the_horizon_is_at_the_token_grids_of_the_paper(monkeypatch):
    monkeypatch.setattr(instruments, "HORIZON_SIZES", (Resolution(32, 32), Resolution(64, 64)))
    found = sola_profile.study_model(replace(SMALL, patch_size=1), 24, count=1)
    assert sorted({each.resolution for each in found.horizons}) == [
        Resolution(8, 8),
        Resolution(16, 16),
        Resolution(24, 24),
    ]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("name", ["mine:make", "mine:spec"])
def test_softmax_layers_are_placed_in_a_backbone_of_the_user_s_own(sola_profile, name):
    code, printed, err = sola_profile(
        *("place", "--model", name, "--pattern", "L|L|S|S", "--res", "32", "--no-measure", "--softmax", "1"),
    )
    # six letters in four layers
    assert (code, "searching 1,296 patterns" in err) == (0, True)
    assert "L|L|S|S" in printed
    assert "small at 32, batch 1, float32" in printed
    pattern = re.search(r"create_model\(spec, pattern=\"(.*)\"\)  # spec: of mine:", printed)[1]
    assert f"sola-profile study --model {name} --pattern '{pattern}'" in printed
    assert create_model(SMALL, pattern=pattern).spec.pattern == pattern


def test_a_placement_takes_a_backbone_and_names_its_spec():
    given, built = (sola_profile.place(model, 32) for model in (SMALL, create_model(SMALL)))
    assert given.front == built.front
    assert 'create_model(spec, pattern="' in given._repr_html_().replace("&quot;", '"')
    assert "# spec: of small" in given._repr_html_()
    with pytest.raises(TypeError, match="got Identity"):
        sola_profile.place(nn.Identity(), 32)


def python_block(page):
    text = (Path(__file__).parents[1] / "docs" / page).read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {}
    exec(compile(block, page, "exec"), names)
    return names


def test_the_page_s_own_backbone_is_the_one_that_is_trained():
    names = python_block("study.md")
    model = names["fresh"]()
    assert replace(model.spec, num_classes=1000) == names["spec"] == proxy_config("match", "LLSLLS").model
    # two fresh ones are the same weights, since the run's seed draws them
    again = names["fresh"]().state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def test_the_page_s_own_mixer_goes_into_the_proxy(monkeypatch):
    import sola_vision.train

    monkeypatch.setattr(sola_vision.train, "train", lambda config: config, raising=False)
    found = python_block("experiments.md")["result"]
    assert (found.model.mixers["L"].name, found.model.pattern) == ("relu", "L|L|LLSLLS|L")
    assert found.output.folder == Path("runs/relu-0")
