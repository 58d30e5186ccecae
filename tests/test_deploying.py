"""The snippets of docs/deploying.md run, one after the other, and give what the model gives."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tolerances import check_close

import sola_vision
from sola_profile import pytorch_operators
from sola_profile.source import _package
from sola_vision import BackboneSpec

PAGE = Path(__file__).resolve().parents[1] / "docs/deploying.md"
SPEC = BackboneSpec(
    "tiny",
    (8, 8, 8, 8),
    "L|M|L|LS",
    {"L": "wkv", "M": "linear", "S": "softmax"},
    head_dim=8,
    bridges=("1.1->4.2",),
)

pytestmark = pytest.mark.slow


def same(got, expected):
    check_close("scores", [got], [expected], [expected.double()], torch.float32, conditioning=4.0)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the snippets leave behind."""
    build, found = sola_vision.create_model, {}
    torch.compiler.reset()
    # it knows how to load timm beside a torchvision that was built for another torch
    _package("timm")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # torch's compiler uses what torch deprecates
        warnings.simplefilter("ignore")
        patch.chdir(tmp_path_factory.mktemp("deploying"))
        patch.setattr(sola_vision, "create_model", lambda _, **options: build(SPEC, **options))
        for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(snippet, found)
            found.setdefault("exported", found["model"])
        yield found


@pytest.mark.parametrize("form", ["loaded", "compiled", "plain"])
def test_every_form_gives_the_scores_of_the_model(names, form):
    run = names[form].module() if form == "plain" else names[form]
    for shape in [(2, 3, 224, 320), (1, 3, 33, 100), (3, 3, 100, 70)]:
        image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            same(run(image), names["exported"](image))


def test_the_plain_program_holds_no_operator_of_ours(names):
    assert any("sola" in str(node.target) for node in names["program"].graph.nodes)
    assert not any("sola" in str(node.target) for node in names["plain"].graph.nodes)


@pytest.mark.parametrize("batch", [1, 2])
def test_decays_are_exported_for_one_size_without_our_operators(batch):
    model = sola_vision.create_model(replace(SPEC, mixers={"L": "decay", "M": "linear", "S": "softmax"})).eval()
    image = torch.randn(batch, 3, 70, 100)
    with torch.no_grad():
        with pytorch_operators():
            plain = torch.export.export(model, (image,))
        assert not any("sola" in str(node.target) for node in plain.graph.nodes)
        same(plain.module()(image), model(image))


def test_the_models_of_timm_are_what_the_page_says(names):
    image = torch.randn(1, 3, 64, 96)
    assert names["scores"](image).shape == (1, 10)
    assert [feature.shape[1:] for feature in names["body"](image)] == [(128, 8, 12), (192, 4, 6), (288, 2, 3)]
    assert names["pooled"](image).shape == (1, 288)
    assert names["last_map"](image).shape == (1, 288, 2, 3)
    assert names["grey"](image[:, :1]).shape == (1, 20)
    assert names["config"]["input_size"] == (3, 224, 224)
    tokens, _ = names["nodes"](image)["layer"]
    assert tokens.shape == (1, 24, 192)


def test_fine_tuning_trains_all_that_is_not_frozen(names):
    model, groups = names["model"], names["optimiser"].param_groups
    assert names["fresh"] == ["head.classifier.bias", "head.classifier.weight"]
    weights = {
        name: weight for name, weight in model.named_parameters() if not name.startswith(("embedding", "stages.0"))
    }
    rates = {id(weight): (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    assert rates.keys() == {id(weight) for weight in weights.values()}
    assert rates[id(weights["head.classifier.weight"])] == (1e-3, 0.05)
    assert rates[id(weights["bridges.1_1_to_4_2.linear.weight"])] == (pytest.approx(8e-4), 0.05)
    assert rates[id(weights["stages.3.blocks.1.norm1.weight"])] == (pytest.approx(8e-4), 0.0)
    assert rates[id(weights["stages.3.blocks.0.mixer.mix.ratios"])] == (pytest.approx(6.4e-4), 0.0)


def test_images_of_a_batch_have_gradients_of_their_own(names):
    grads = names["grads"]
    assert grads.keys() == dict(names["model"].named_parameters()).keys()
    assert all(
        grad.shape == (4, *names["weights"][name].shape) and grad.isfinite().all() for name, grad in grads.items()
    )
    bias = grads["head.classifier.bias"]
    # softmax less one at the image's own label
    assert torch.equal(bias.argmin(1), torch.arange(4))
    assert not bias[0].equal(bias[1])
