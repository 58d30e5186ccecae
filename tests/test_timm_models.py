"""The presets through timm's own factory, optimisers, feature extraction, checkpoints and utilities."""

# B batch, C channels, H height, W width

import argparse
import importlib
import json
import math

import pytest
import torch
from tolerances import check_close

import sola_vision
from sola_profile.source import _package
from sola_vision.backbone import LEAF_MODULES
from sola_vision.train.folder import seeded

# it knows how to load timm beside a torchvision that was built for another torch
timm = _package("timm")
for _part in ("data", "loss", "optim", "scheduler", "task", "utils"):
    importlib.import_module(f"timm.{_part}")
importlib.import_module("sola_vision.timm_models")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _seed():
    # timm mixes images by NumPy's generator
    with seeded(0):
        yield


def built(**options):
    return timm.create_model("sola_t", **options).eval()


def images(*size, batch=2, channels=3):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(7))


def test_timm_lists_every_preset_and_nothing_pretrained():
    assert set(timm.list_models("sola*")) == set(sola_vision.list_models())
    assert timm.list_models("sola*", pretrained=True) == []
    assert set(timm.list_models(module="timm_models")) == set(sola_vision.list_models())


def test_keywords_of_timm_build_the_model_that_ours_build():
    pattern = "LL|LL|LLLLLL|SS"
    theirs = built(num_classes=7, in_chans=1, drop_path_rate=0.2, pattern=pattern, mixers={"L": "decay"})
    torch.manual_seed(0)
    ours = sola_vision.create_model(
        "sola_t", num_classes=7, in_channels=1, drop_path=0.2, pattern=pattern, mixers={"L": "decay"}
    ).eval()
    assert theirs.spec == ours.spec
    image = images(40, 70, channels=1)
    assert torch.equal(theirs(image), ours(image))


def test_dtype_and_device_are_those_asked_for():
    assert {p.dtype for p in built(dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert all(parameter.is_meta for parameter in built(device="meta").parameters())


def test_dropout_acts_before_the_classifier_in_training_only():
    model, image = built(drop_rate=0.5, num_classes=9), images(32, 32)
    assert torch.equal(model(image), model(image))
    pooled = model.forward_head(model.forward_features(image), pre_logits=True)
    model.train()
    dropped = model.forward_head(model.forward_features(image), pre_logits=True)
    zero = dropped == 0
    assert 0.3 < zero.float().mean() < 0.7
    check_close("kept", [dropped[~zero]], [2 * pooled[~zero]], [2 * pooled[~zero].double()], torch.float32)
    assert not torch.equal(model(image), model(image))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"img_size": 64}, TypeError, r"sola_t: unexpected keyword 'img_size'; allowed: num_classes, in_chans, .*"),
        ({"out_indices": (1, 2)}, TypeError, "'out_indices'; allowed: .*; with features_only=True out_indices"),
        ({"feature_cls": "hook"}, ValueError, "feature_cls: expected 'getter', .*got 'hook'"),
        ({"drop_rate": 1.5}, ValueError, r"drop_rate: expected a rate in \[0, 1\), got 1.5"),
        ({"global_pool": "max"}, ValueError, "global_pool: expected 'avg' or '' for none, got 'max'"),
        (
            {"global_pool": ""},
            ValueError,
            "global_pool: a model without pooling has no classifier, got num_classes=1000",
        ),
        ({"features_only": True, "out_indices": (1, 4)}, ValueError, r"indices: expected .* -4 to 3, got \(1, 4\)"),
        ({"pretrained": True}, RuntimeError, "No pretrained weights exist for sola_t"),
        ({"pattern": "LL"}, sola_vision.PatternError, "pattern"),
    ],
)
def test_refuses_what_it_cannot_build(options, error, message):
    with pytest.raises(error, match=message):
        built(**options)


def test_the_data_config_is_that_of_the_trainer():
    config = timm.data.resolve_model_data_config(built())
    assert config["input_size"] == (3, 224, 224)
    assert (config["crop_pct"], config["interpolation"]) == (0.875, "bicubic")
    transform = timm.data.create_transform(**config)
    assert "Resize(size=256" in str(transform)
    grey = sola_vision.create_model("sola_t", in_channels=1)
    config = timm.data.resolve_model_data_config(grey)
    assert (config["input_size"], len(config["mean"]), len(config["std"])) == ((1, 224, 224), 1, 1)


def test_features_are_those_of_our_own_extraction():
    image = images(100, 70)
    body = built(features_only=True, out_indices=(1, 2))
    torch.manual_seed(0)
    whole = sola_vision.create_model("sola_t", features_only=True).eval()
    whole.load_state_dict(body.model.state_dict(), strict=False)
    maps = body(image)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(maps, whole(image)[1:3], strict=True))
    assert body.feature_info.channels() == [128, 192] == [feature.size(1) for feature in maps]
    assert body.feature_info.reduction() == [8, 16]
    assert built(features_only=True).feature_info.channels() == [96, 128, 192, 288]
    assert built(features_only=True, out_indices=2).feature_info.reduction() == [16, 32]


@pytest.mark.parametrize("out_indices", [(0,), (1, 2), (-1, 0), 4])
def test_a_feature_model_has_no_weight_that_its_maps_do_not_need(out_indices):
    """DistributedDataParallel stops at parameters without a gradient."""
    body = built(features_only=True, out_indices=out_indices).train()
    sum(feature.mean() for feature in body(images(64, 64))).backward()
    assert [name for name, parameter in body.named_parameters() if parameter.grad is None] == []


def test_maps_of_the_last_stage_can_be_normed():
    image = images(64, 96)
    body = built(features_only=True, out_indices=(2, 3), feature_cfg={"norm": True})
    torch.manual_seed(0)
    expected = built().forward_features(image)
    assert torch.equal(body(image)[1], expected)
    assert [name for name, _ in body.model.head.named_parameters()] == ["norm.weight", "norm.bias"]
    early = built(features_only=True, out_indices=(0, 1), feature_cfg={"norm": True})
    assert [feature.size(1) for feature in early(image)] == [96, 128]


def test_the_tracer_of_torch_fx_gives_the_same_scores_at_any_size():
    model = built(num_classes=5)
    nodes = timm.models.create_feature_extractor(model, {"stages.2.blocks.5": "layer", "head": "scores"})
    for size in ((64, 64), (70, 100)):
        found = nodes(images(*size))
        assert torch.equal(found["scores"], model(images(*size)))
        assert found["layer"][0].shape == (2, math.ceil(size[0] / 16) * math.ceil(size[1] / 16), 192)
    from torchvision.models.feature_extraction import create_feature_extractor

    plain = create_feature_extractor(model, ["head"], tracer_kwargs={"leaf_modules": list(LEAF_MODULES)})
    assert torch.equal(plain(images(64, 64))["head"], model(images(64, 64)))


def test_layer_decay_follows_the_depth():
    model = built(num_classes=3)
    optimiser = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    found = {}
    for group in optimiser.param_groups:
        found |= {id(parameter): (group["lr_scale"], group["weight_decay"]) for parameter in group["params"]}
    scales = {name: found[id(parameter)] for name, parameter in model.named_parameters()}
    # 12 layers behind the embedding, then the classifier
    expected = {
        "embedding.projection.weight": (13, 0.05),
        "embedding.norm.weight": (13, 0.0),
        "stages.0.blocks.0.mixer.key.weight": (12, 0.05),
        "stages.1.merging.reduction.weight": (10, 0.05),
        "stages.1.blocks.0.mixer.decay": (10, 0.0),
        "stages.2.blocks.2.channel_mix.mix.ratios": (6, 0.0),
        "bridges.1_2_to_3_3.linear.weight": (6, 0.05),
        "bridges.2_2_to_3_6.linear.weight": (3, 0.05),
        "bridges.3_2_to_4_2.linear.weight": (1, 0.05),
        "stages.3.blocks.1.mixer.output.weight": (1, 0.05),
        "head.norm.bias": (1, 0.0),
        "head.classifier.weight": (0, 0.05),
        "head.classifier.bias": (0, 0.0),
    }
    assert {name: scales[name] for name in expected} == {
        name: (0.5**steps, decay) for name, (steps, decay) in expected.items()
    }
    assert {name for name, (_, decay) in scales.items() if decay == 0} == model.no_weight_decay()


def test_coarse_groups_are_the_stages():
    model = built()
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert groups["embedding.norm.bias"] == 0
    assert [groups[f"stages.{stage}.blocks.0.norm1.weight"] for stage in range(4)] == [1, 2, 3, 4]
    assert groups["stages.2.merging.norm.bias"] == groups["bridges.2_2_to_3_6.linear.weight"] == 3
    assert (groups["head.norm.weight"], groups["head.classifier.bias"]) == (4, 5)


def test_the_classifier_is_what_timm_leaves_out():
    """Adaptive gradient clipping takes the last two parameters for the classifier's."""
    model = built(num_classes=3)
    kept = {id(parameter) for parameter in timm.models.model_parameters(model, exclude_head=True)}
    left_out = [name for name, parameter in model.named_parameters() if id(parameter) not in kept]
    assert left_out == ["head.classifier.weight", "head.classifier.bias"]


def test_freezing_reaches_what_it_names():
    model = built()
    timm.utils.freeze(model, ["embedding", "stages.0"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.split(".blocks")[0] for name in frozen} == {
        *(f"embedding.{name}" for name in ("projection.weight", "projection.bias", "norm.weight", "norm.bias")),
        "stages.0",
    }
    timm.utils.unfreeze(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_statistics_of_activations_are_collected():
    hooks = timm.utils.model

    def rms(module, _, output):
        return output.square().mean().sqrt().item()

    stats = hooks.extract_spp_stats(
        built(),
        ["embedding.projection", "embedding.projection", "stages.*.blocks.*.mixer.output"],
        [hooks.avg_sq_ch_mean, hooks.avg_ch_var, rms],
        [2, 3, 64, 64],
    )
    assert [len(values) for values in stats.values()] == [1, 1, 12]
    assert all(math.isfinite(value) and value > 0 for values in stats.values() for value in values)


def test_weights_of_another_width_and_depth_of_image_are_adapted(tmp_path):
    """As timm does with weights that it downloads: other classes are left out, other channels are averaged."""
    source = built()
    sola_vision.save_weights(source, tmp_path / "w.safetensors")
    overlay = {"file": str(tmp_path / "w.safetensors")}
    grey = built(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=4, in_chans=1)
    assert grey.get_classifier().out_features == grey.num_classes == 4
    weight = source.embedding.projection.weight.sum(1, keepdim=True)
    assert torch.equal(grey.embedding.projection.weight, weight)
    image = images(64, 64, channels=1)
    features = source.forward_features(image.expand(-1, 3, -1, -1))
    check_close("features", [grey.forward_features(image)], [features], [features.double()], torch.float32, 16.0)
    body = built(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=(3,))
    assert torch.equal(body.model.stages[3].blocks[1].norm1.weight, source.stages[3].blocks[1].norm1.weight)
    same = built(checkpoint_path=str(tmp_path / "w.safetensors"))
    assert torch.equal(same(images(64, 64)), source(images(64, 64)))


def test_a_saved_model_is_built_again_from_its_folder(tmp_path):
    model = built(num_classes=6, in_chans=2, pattern="LL|LL|LLLLLS|LS", mixers={"L": "linear"}, bridges=[])
    model.reset_classifier(4)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_classes"], config["pretrained_cfg"]["input_size"]) == (4, [2, 224, 224])
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.spec == model.spec
    image = images(48, 48, channels=2)
    assert torch.equal(again(image), model(image))


def test_resetting_the_classifier_leaves_all_else():
    model, image = built(dtype=torch.float64), images(64, 40).double()
    features, before = model.forward_features(image), {k: v.clone() for k, v in model.state_dict().items()}
    model.reset_classifier(11)
    assert model(image).shape == (2, 11) == (2, model.num_classes)
    assert model.get_classifier().weight.dtype == torch.float64
    model.reset_classifier(0)
    assert torch.equal(model(image), model.forward_head(features, pre_logits=True))
    assert model(image).shape == (2, model.num_features) == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert torch.equal(model(image), features)
    assert features.shape == (2, 288, 2, 2)
    model.reset_classifier(1000, "avg")
    assert model.state_dict().keys() == before.keys()
    assert sola_vision.get_spec("sola_t") == model.spec
    loaded = model.load_state_dict(before)
    assert loaded.missing_keys == loaded.unexpected_keys == []


def test_a_model_is_fine_tuned_with_the_tools_of_timm(tmp_path):
    """Layer decay, schedule, averaged weights, mixing, checkpoints: two kinds of images are told apart, and it resumes."""
    model = timm.create_model("sola_t", num_classes=2, drop_path_rate=0.1, drop_rate=0.1)
    model.set_grad_checkpointing()
    timm.utils.freeze(model, "embedding")
    optimiser = timm.optim.create_optimizer_v2(model, "adamw", lr=2e-3, weight_decay=0.05, layer_decay=0.9)
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimiser, sched="cosine", num_epochs=3, warmup_epochs=0, min_lr=1e-4
    )
    average = timm.utils.ModelEmaV3(model, decay=0.5)
    mixing = timm.data.Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=2)
    losses = timm.utils.AverageMeter()
    loss = timm.loss.SoftTargetCrossEntropy()
    args = argparse.Namespace(model="sola_t")
    saver = timm.utils.CheckpointSaver(
        model, optimiser, args, average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path), max_history=2
    )
    labels = torch.arange(8) % 2
    for epoch in range(3):
        model.train()
        for step in range(5):
            noise = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(10 * epoch + step))
            mixed, targets = mixing(noise + 2 * labels[:, None, None, None], labels)
            value = loss(model(mixed), targets)
            optimiser.zero_grad()
            value.backward()
            timm.utils.dispatch_clip_grad(timm.models.model_parameters(model, exclude_head=True), 0.02, mode="agc")
            optimiser.step()
            average.update(model)
            losses.update(value.item(), 8)
        scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=-losses.avg)
    scale = {group["lr_scale"] for group in optimiser.param_groups}
    assert max(scale) == 1
    assert len(scale) == 13
    assert all(
        group["lr"] == pytest.approx(optimiser.param_groups[-1]["lr"] * group["lr_scale"])
        for group in optimiser.param_groups
    )
    image = torch.randn(8, 3, 32, 32) + 2 * labels[:, None, None, None]
    model.eval()
    assert timm.utils.accuracy(model(image), labels)[0] == 100
    _continues(model, average, tmp_path / "last.pth.tar", image)


def _continues(model, average, path, image):
    """Weights, averaged weights and optimiser come back from the checkpoint."""
    loaded = timm.create_model("sola_t", num_classes=2).eval()
    timm.models.load_checkpoint(loaded, path, use_ema=False)
    assert torch.equal(loaded(image), model(image))
    timm.models.load_checkpoint(loaded, path)
    assert torch.equal(loaded(image), average(image))
    resumed = timm.create_model("sola_t", num_classes=2)
    timm.utils.freeze(resumed, "embedding")
    optimiser = timm.optim.create_optimizer_v2(resumed, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.9)
    assert timm.models.resume_checkpoint(resumed, path, optimiser) == 3
    assert torch.equal(resumed.eval()(image), model(image))
    states = [
        optimiser.state[parameter]["step"].item() for parameter in resumed.parameters() if parameter.requires_grad
    ]
    assert states == [15] * len(states)
    with pytest.raises(RuntimeError, match=r"size mismatch for head\.classifier\.weight"):
        timm.models.load_checkpoint(timm.create_model("sola_t", num_classes=3), path)


def test_features_are_distilled_from_a_backbone():
    teacher, student = built(num_classes=3), timm.create_model("sola_s", num_classes=3)
    task = timm.task.FeatureDistillationTask(student, teacher, verbose=False)
    found = task(images(32, 32), torch.tensor([0, 2]))
    found["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.embedding.projection.weight.grad.abs().max() > 0
