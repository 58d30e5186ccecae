"""Classifier, intermediates and pruned feature models of a backbone, without timm."""

# B batch, C channels, H height, W width

import numpy as np
import pytest
import torch

from sola_vision import BackboneSpec, create_model, load_weights, save_weights
from sola_vision.features import stage_indices

SPEC = BackboneSpec("tiny", (16, 16, 32, 32), "L|L|LS|LS", head_dim=8, bridges=("1.1->3.2", "3.1->4.2"), num_classes=5)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model(SPEC).eval()


@pytest.fixture
def image():
    return torch.randn(2, 3, 70, 100, generator=torch.Generator().manual_seed(7))


def same(found, expected):
    assert len(found) == len(expected)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def whole(model):
    """The same weights in a model that returns all four maps."""
    features = create_model(SPEC, features_only=True).eval()
    features.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("head")})
    return features


def test_features_and_head_are_the_model(model, image):
    features = model.forward_features(image)
    assert features.shape == (2, 32, 3, 4)
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.forward_head(features), model(image))
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(model.get_classifier()(pooled), model(image))
    assert (model.in_chans, model.num_features, model.head_hidden_size) == (3, 32, 32)


@pytest.mark.parametrize(
    ("indices", "stages"), [(None, [0, 1, 2, 3]), (1, [3]), (2, [2, 3]), ([2, 0], [0, 2]), ((-1, 1, 3), [1, 3])]
)
def test_intermediates_are_the_maps_of_the_stages_in_order(model, image, indices, stages):
    maps = whole(model)(image)
    same(model.forward_intermediates(image, indices, intermediates_only=True), [maps[stage] for stage in stages])
    last, found = model.forward_intermediates(image, indices)
    same([last, *found], [model.forward_features(image), *(maps[stage] for stage in stages)])
    last, found = model.forward_intermediates(image, indices, norm=True)
    normed = [model.forward_features(image) if stage == 3 else maps[stage] for stage in stages]
    same([last, *found], [model.forward_features(image), *normed])


def test_intermediates_end_early_where_nothing_more_is_needed(model, image):
    ran = []
    for number, stage in enumerate(model.stages):
        stage.blocks[0].register_forward_hook(lambda *_, number=number: ran.append(number))
    last, (first, second) = model.forward_intermediates(image, [0, 1], stop_early=True)
    assert ran == [0, 1]
    assert last is second
    assert first.shape == (2, 16, 18, 25)
    model.forward_intermediates(image, [0], intermediates_only=True)
    assert ran == [0, 1, 0]
    model.forward_intermediates(image, [0])
    assert ran == [0, 1, 0, 0, 1, 2, 3]


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2), [-1], 2, (2, 0)])
def test_a_feature_model_holds_and_loads_what_its_maps_need(model, image, out_indices, tmp_path):
    save_weights(model, tmp_path / "w")
    features = create_model(SPEC, features_only=True, out_indices=out_indices).eval()
    left = load_weights(features, tmp_path / "w", strict=False)
    assert {name.split(".")[0] for name in left} <= {"head", "stages", "bridges"}
    assert not set(left) & set(features.state_dict())
    maps = features(image)
    chosen = features.feature_info.out_indices
    same(maps, [whole(model)(image)[stage] for stage in chosen])
    assert features.feature_info.channels() == [feature.size(1) for feature in maps]
    assert features.feature_info.reduction(chosen[0]) == features.feature_info.reduction()[0]
    sum(feature.mean() for feature in features(image)).backward()
    assert all(parameter.grad is not None for parameter in features.parameters())


def test_pruning_keeps_the_head_that_it_is_told_to_keep(model, image):
    scores = model(image)
    assert model.prune_intermediate_layers([1, -1], prune_head=False) == [1, 3]
    assert torch.equal(model(image), scores)
    features = model.forward_features(image)
    assert model.prune_intermediate_layers([1, -1]) == [1, 3]
    assert torch.equal(model(image), features)
    assert model.prune_intermediate_layers([-2]) == [2]
    assert (model.num_classes, model.num_features, list(model.bridges)) == (0, 32, ["1_1_to_3_2"])
    assert model.get_classifier()(scores) is scores
    model.reset_classifier(0, "")
    assert [feature.shape[1] for feature in model(image)] == [32]


def test_weights_drawn_again_are_those_of_the_whole_model():
    torch.manual_seed(1)
    part = create_model(SPEC, features_only=True, out_indices=(0, 1))
    part.init_weights()
    first, second = (stage.blocks[0].mixer.decay for stage in whole(create_model(SPEC)).stages[:2])
    assert torch.equal(part.stages[0].blocks[0].mixer.decay, first)
    assert torch.equal(part.stages[1].blocks[0].mixer.decay, second)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model, image: model.forward_intermediates(image, 5),
            r"indices: expected the last 1 to 4 stages .*got 5",
        ),
        (lambda model, image: model.forward_intermediates(image, [4]), r"list of stages from -4 to 3, got \[4\]"),
        (lambda model, image: model.forward_intermediates(image, []), r"got \[\]"),
        (lambda model, image: model.forward_intermediates(image, output_fmt="NLC"), "output_fmt: .*'NCHW', got 'NLC'"),
        (lambda model, image: whole(model).forward_intermediates(image, norm=True), "norm: expected False"),
        (lambda model, image: whole(model).forward_head(image), "forward_head: .*no head"),
        (lambda model, image: whole(model).reset_classifier(3), "num_classes: .*no head, got 3"),
        (lambda model, image: model.reset_classifier(-1), "num_classes: expected a whole number of at least 0, got -1"),
        (lambda model, image: model.reset_classifier(3, ""), "global_pool: .*got num_classes=3"),
        (lambda model, image: model.reset_classifier(3, "max"), "global_pool: expected 'avg' or '' .*got 'max'"),
        (lambda *_: create_model(SPEC, out_indices=(1,)), r"out_indices: .*features_only=True, got \(1,\)"),
        (lambda *_: create_model(SPEC, features_only=True, out_indices=(1, 7)), r"out_indices: .*got \(1, 7\)"),
    ],
)
def test_says_what_is_allowed(model, image, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, image)


@pytest.mark.parametrize(
    ("indices", "stages"),
    [
        (lambda: (stage for stage in (3, 1)), (1, 3)),
        (lambda: {0, 2}, (0, 2)),
        (lambda: np.array([2, -1]), (2, 3)),
        (lambda: np.int64(2), (2, 3)),
        (lambda: torch.tensor([1]), (1,)),
    ],
    ids=["generator", "set", "array", "number of numpy's", "tensor"],
)
def test_whole_numbers_of_any_kind_name_stages(indices, stages):
    assert stage_indices("indices", indices(), 4) == stages


@pytest.mark.parametrize(
    ("indices", "got"),
    [
        (True, "True"),
        ([True], r"\[True\]"),
        (1.5, r"1\.5"),
        ([0, 1.0], r"\[0, 1\.0\]"),
        ("12", "'12'"),
        (np.array([0.5]), r"\[.*0\.5.*\]"),
        (np.array([], dtype=int), r"\[\]"),
        (iter([1, 9]), r"\[1, 9\]"),
    ],
)
def test_anything_else_names_no_stages(indices, got):
    with pytest.raises(ValueError, match=f"^indices: expected the last 1 to 4 .* to 3, got {got}$"):
        stage_indices("indices", indices, 4)
