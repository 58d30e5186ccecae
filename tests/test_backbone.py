"""Whole backbones: any resolution, four feature maps, layouts, dtypes, checkpointing, and that they learn."""

# B batch, C channels, H height, W width

import functools
import itertools

import pytest
import torch
from tolerances import check_close
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from sola_vision import Backbone, BackboneSpec, create_model, ops
from sola_vision.layers.mixers import MIXERS
from sola_vision.ops import reference
from sola_vision.train.optim import parameter_groups

SPEC = BackboneSpec("tiny", (16, 16, 32, 32), "L|L|LS|LS", head_dim=8, bridges=("1.1->3.2", "3.1->4.2"), num_classes=5)
every_mixer = pytest.mark.parametrize("mixer", sorted(MIXERS))


# models this small lose time to a second thread
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(dtype=torch.float32, **options):
    return create_model(SPEC, **options).to(dtype).eval()


def images(*size, batch=2, dtype=torch.float32):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(7), dtype=dtype)


def gradients(model, image):
    model.zero_grad()
    model(image).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@every_mixer
def test_a_model_is_its_definition(mixer, monkeypatch):
    """The same weights on the plain PyTorch operators: scores and every gradient, in float64."""
    model, image = tiny(torch.float64, mixers={"L": mixer}), images(37, 50, dtype=torch.float64)
    scores, grads = model(image), gradients(model, image)
    for name in ("softmax_attention", "linear_attention", "wkv"):
        monkeypatch.setattr(ops, name, getattr(reference, name))
    exact, exact_grads = model(image), gradients(model, image)
    check_close("scores", [scores], [exact], [exact], torch.float64)
    check_close("gradients", grads.values(), exact_grads.values(), exact_grads.values(), torch.float64)


@every_mixer
def test_the_gradient_is_the_slope(mixer):
    model, image = tiny(torch.float64, mixers={"L": mixer}), images(32, 32, dtype=torch.float64)
    grads = gradients(model, image)
    direction = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    slope = sum((grads[name] * direction[name]).sum() for name in grads)
    step = 1e-5
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for name, parameter in model.named_parameters():
                parameter.add_(direction[name], alpha=sign * step)
            values.append(model(image).square().sum())
    # a central difference errs by the third derivative times the step squared
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope.item(), rel=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (63, 97), (32, 160), (5, 9), (1, 1)])
@pytest.mark.parametrize("mixer", ["wkv", "linear"])
def test_any_resolution_gives_four_feature_maps(size, mixer):
    model = tiny(features_only=True, mixers={"L": mixer})
    maps = model(images(*size))
    grids = SPEC.token_grids(*size)
    assert [tuple(feature.shape) for feature in maps] == [
        (2, dim, *grid) for dim, grid in zip(SPEC.dims, grids, strict=True)
    ]
    assert all(feature.isfinite().all() for feature in maps)
    assert model.feature_info.channels() == list(SPEC.dims)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    for feature, info in zip(maps, model.feature_info, strict=True):
        assert feature.shape[1] == info.channels
        assert feature.shape[2:] == tuple(-(-side // info.reduction) for side in size)
        assert feature.is_contiguous(memory_format=torch.channels_last)


def test_feature_info_reads_one_or_all():
    info = tiny(features_only=True).feature_info
    assert len(info) == 4
    assert (info.channels(2), info.reduction(3), info[1].module) == (32, 32, "stages.1")
    modules = dict(tiny(features_only=True).named_modules())
    assert all(feature.module in modules for feature in info)


def test_the_head_reads_the_last_feature_map():
    model, image = tiny(), images(64, 96)
    features = tiny(features_only=True)
    features.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("head")})
    last = features(image)[-1].permute(0, 2, 3, 1)
    pooled = F.layer_norm(last, last.shape[-1:]).mean((1, 2))
    check_close("scores", [model(image)], [model.head.classifier(pooled)], [model(image).double()], torch.float32)
    assert tiny(num_classes=0)(image).shape == (2, 32)


def test_images_of_a_batch_do_not_mix():
    model, image = tiny(torch.float64), images(40, 56, batch=3, dtype=torch.float64)
    together, alone = model(image), torch.cat([model(image[index : index + 1]) for index in range(3)])
    check_close("scores", [together], [alone], [alone], torch.float64)
    assert tiny()(images(32, 32, batch=0)).shape == (0, 5)


def test_padding_reads_as_zeros():
    """An image that isn't whole patches is the image with zeros beside it."""
    model, image = tiny(), images(62, 93)
    assert torch.equal(model(image), model(F.pad(image, (0, 3, 0, 2))))


def test_channels_last_changes_nothing():
    model, image = tiny(torch.float64), images(64, 40, dtype=torch.float64)
    plain = model(image)
    check_close("input", [model(image.to(memory_format=torch.channels_last))], [plain], [plain], torch.float64)
    model = model.to(memory_format=torch.channels_last)
    check_close("weights", [model(image.to(memory_format=torch.channels_last))], [plain], [plain], torch.float64)


@every_mixer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_runs_in_every_dtype(mixer, dtype):
    model, image = tiny(dtype, mixers={"L": mixer}), images(48, 48).to(dtype)
    scores, grads = model(image), gradients(model, image)
    rounded = model.double()(image.double())
    exact = tiny_exact(mixer)(images(48, 48).double())
    assert scores.dtype == dtype
    assert all(grad.isfinite().all() and grad.dtype == dtype for grad in grads.values())
    # six layers, each a few roundings
    check_close(mixer, [scores], [rounded], [exact], dtype, conditioning=8.0)


def tiny_exact(mixer):
    torch.manual_seed(0)
    return create_model(SPEC, mixers={"L": mixer}).eval().double()


@every_mixer
def test_autocast_runs_the_model_in_low_precision(mixer):
    model, image = tiny(mixers={"L": mixer}), images(48, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(image)
        scores.sum().backward()
    assert scores.dtype == torch.bfloat16
    check_close(mixer, [scores], [scores], [model(image).double()], torch.bfloat16, conditioning=8.0)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@every_mixer
def test_checkpointing_changes_no_gradient(mixer):
    model, image = tiny(mixers={"L": mixer}), images(40, 64)
    plain = gradients(model, image)
    model.set_grad_checkpointing()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()), lambda _: None):
        model(image)
    kept = sum(saved)
    checkpointed = gradients(model, image)
    model.set_grad_checkpointing(False)
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()), lambda _: None):
        model(image)
    assert kept < 0.5 * sum(saved)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


@every_mixer
def test_an_ensemble_runs_and_learns_as_its_members(mixer):
    """``torch.vmap`` over stacked weights, and over images that share weights."""
    members = [tiny(torch.float64, mixers={"L": mixer}) for _ in range(2)]
    image = images(40, 64, dtype=torch.float64)
    weights, buffers = torch.func.stack_module_state(members)
    call = functools.partial(torch.func.functional_call, members[0])
    scores = torch.vmap(lambda *state: call(state, image))(weights, buffers)
    grads = torch.autograd.grad(scores.square().sum(), list(weights.values()))
    together = dict(zip(weights, grads, strict=True))
    for number, member in enumerate(members):
        torch.testing.assert_close(scores[number], member(image))
        for name, grad in gradients(member, image).items():
            torch.testing.assert_close(together[name][number], grad)
    torch.testing.assert_close(torch.vmap(members[0])(image[:, None])[:, 0], members[0](image))


@every_mixer
def test_gradients_of_every_image(mixer):
    model, batch = tiny(torch.float64, mixers={"L": mixer}), images(40, 64, dtype=torch.float64)

    def loss(weights, image):
        return torch.func.functional_call(model, weights, image[None]).square().sum()

    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    got = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, batch)
    for number, image in enumerate(batch):
        for name, grad in gradients(model, image[None]).items():
            torch.testing.assert_close(got[name][number], grad)


def test_drop_path_acts_in_training_only():
    model, image = tiny(drop_path=0.5), images(32, 32)
    assert torch.equal(model(image), model(image))
    model.train()
    assert not torch.equal(model(image), model(image))


def test_a_bridge_carries_the_early_state_to_its_target_alone():
    """Cutting the source's way through the layers leaves its state as the only path."""
    model, bare, image = tiny(), tiny(bridges=()), images(64, 64)
    shared = {key: value for key, value in model.state_dict().items() if not key.startswith("bridges")}
    bare.load_state_dict(shared)
    features, plain = _maps(model, image), _maps(bare, image)
    assert all(torch.equal(features[stage], plain[stage]) for stage in (0, 1))
    assert not torch.allclose(features[2], plain[2])
    with torch.no_grad():
        for bridge in model.bridges.values():
            bridge.linear.weight.zero_()
    assert torch.equal(model(image), bare(image))


def _maps(model, image):
    head, model.head = model.head, None
    maps = model(image)
    model.head = head
    return maps


def test_one_state_may_feed_several_layers_and_one_layer_take_several():
    model = tiny(pattern="L|L|LS|LS", bridges=["1.1->3.2", "1.1->4.2", "2.1->4.2", "3.1->3.2"])
    grads = gradients(model, images(40, 72))
    for name in ("1_1_to_3_2", "1_1_to_4_2", "2_1_to_4_2", "3_1_to_3_2"):
        assert grads[f"bridges.{name}.linear.weight"].abs().max() > 0


def test_fresh_weights_follow_the_seed_and_can_be_drawn_again():
    torch.manual_seed(3)
    first = tiny()
    torch.manual_seed(3)
    second = tiny()
    for (name, mine), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other), name
    with torch.device("meta"):
        empty = create_model(SPEC)
    empty = empty.to_empty(device="cpu")
    torch.manual_seed(4)
    empty.init_weights()
    torch.manual_seed(4)
    first.init_weights()
    for (name, mine), other in zip(first.named_parameters(), empty.named_parameters(), strict=True):
        assert torch.equal(mine, other[1]), name


def test_deeper_layers_start_with_another_decay():
    spec = BackboneSpec("deep", (16,) * 4, "L|LL|LLL|LS", head_dim=8)
    model = Backbone(spec)
    decays = [block.mixer.decay for stage in model.stages for block in stage.blocks if block.mixer.kind == "linear"]
    for shallow, deep in itertools.pairwise(decays):
        assert (deep <= shallow).all()
        assert (deep < shallow).any()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 32, 32), r"image: expected \(B, 3, H, W\), got \(3, 32, 32\)"),
        (torch.zeros(1, 4, 32, 32), r"image: expected \(B, 3, H, W\), got \(1, 4, 32, 32\)"),
        (torch.zeros(1, 32, 32, 3), r"image: expected \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 0, 32), "image: expected at least 1 pixel to a side"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "image: expected a floating-point dtype, got torch.uint8"),
    ],
)
def test_refuses_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message):
        tiny()(image)


@pytest.mark.parametrize("pattern", ["L|L|LS|LS", "S|S|SS|SS"])
@every_mixer
def test_a_small_one_learns(mixer, pattern):
    """32 random images with random labels are learned by heart in a few steps."""
    model = create_model(SPEC, mixers={"L": mixer}, pattern=pattern).train()
    image, label = images(32, 32, batch=32), torch.arange(32) % SPEC.num_classes
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(image), label).backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(image).argmax(1) == label).float().mean().item()
    assert accuracy > 0.95


def test_what_should_not_decay_is_named():
    model = create_model("sola_t", mixers={"M": "decay"}, pattern="LL|LM|LLSLLS|LS", num_classes=3)
    kept = model.no_weight_decay()
    assert {name.rpartition(".")[2] for name in kept} == {"bias", "weight", "decay", "bonus", "log_rate", "ratios"}
    _, others = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in others["params"]} == kept


@pytest.mark.parametrize(
    ("change", "matrices"),
    [
        (lambda part: prune.l1_unstructured(part, "weight", amount=0.3), ["weight_orig"]),
        (parametrizations.spectral_norm, ["parametrizations.weight.original"]),
        # a norm per row, which is as long as the row
        (parametrizations.weight_norm, [f"parametrizations.weight.original{number}" for number in (0, 1)]),
    ],
)
def test_matrices_that_are_computed_decay_by_what_they_are_computed_from(change, matrices):
    model = tiny()
    kept = model.no_weight_decay()
    for layer, path in ((model.embedding.projection, "projection"), (model.head.classifier, "classifier")):
        change(layer)
        names = [name.partition(path + ".")[2] for name, _ in model.named_parameters() if f"{path}." in name]
        assert sorted(names) == ["bias", *matrices]
    assert model.no_weight_decay() == kept
    decayed, _ = parameter_groups(model, 0.05)
    assert len(decayed["params"]) == len(list(model.parameters())) - len(kept)
