"""Models by name, the errors of wrong requests, and weights in and out."""

import subprocess
import sys

import pytest
import torch
from kept import Kept
from safetensors.torch import load_file, save_file

import sola_profile
import sola_vision
from sola_vision import BackboneSpec, create_model, get_spec, load_weights, save_weights

SPEC = BackboneSpec("tiny", (16, 16, 32, 32), "L|L|LS|LS", head_dim=8, bridges=("1.1->3.2", "3.1->4.2"), num_classes=5)


def test_what_is_not_given_stays_as_the_model_has_it():
    with torch.device("meta"):
        model = create_model("sola_t")
    assert model.spec == get_spec("sola_t")


def test_every_argument_reaches_the_spec():
    with torch.device("meta"):
        model = create_model(
            "sola_t",
            num_classes=7,
            pattern="L*2|L*2|(MMS)*2|LS",
            mixers={"L": "decay", "M": ("linear", {"rope": False})},
            bridges=["1.1 -> 3.6"],
            drop_path=0.2,
            in_channels=1,
        )
    spec = model.spec
    assert (spec.num_classes, spec.pattern, spec.drop_path, spec.in_channels) == (7, "LL|LL|MMSMMS|LS", 0.2, 1)
    assert {letter: str(mixer) for letter, mixer in spec.mixers.items()} == {
        "L": "decay",
        "M": "linear(rope=False)",
        "S": "softmax",
    }
    assert [str(bridge) for bridge in spec.bridges] == ["1.1->3.6"]
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.2 * index / 11 for index in range(12)])


def test_the_model_s_bridges_are_kept_as_far_as_they_fit():
    with torch.device("meta"):
        assert [str(b) for b in create_model("sola_t", pattern="LL|LL|LSLLLS|LL").spec.bridges] == ["2.2->3.6"]
        assert create_model("sola_t", mixers={"S": "decay"}).spec.bridges == ()
        assert create_model("sola_t", bridges=()).spec.bridges == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "sola_x"}, "model: no preset is named 'sola_x'; did you mean 'sola_"),
        ({"pattern": "LL|LL|LLSLLX|LS"}, r"names no mixer; allowed: L, S\n  LL\|LL\|LLSLLX\|LS\n {13}\^"),
        ({"pattern": "LL|LL|LLS|LS"}, "stage 3 has 3 layers where the backbone has 6"),
        ({"mixers": {"L": "wvk"}}, "mixers: no mixer is named 'wvk'; did you mean 'wkv'"),
        ({"mixers": {"X": "wvk"}}, "mixers: no mixer is named 'wvk'"),
        ({"mixers": {"L": ("wkv", {"shfit": False})}}, "mixers: wkv has no option 'shfit'; did you mean 'shift'"),
        ({"mixers": {"L": ("wkv", {"decay_per": 3})}}, "decay_per: expected one of sequence, token, got 3"),
        ({"mixers": {"L": ("wkv", {"shift": "no"})}}, "^shift: expected True or False, got 'no'"),
        ({"mixers": {"L": ("linear", {"rope": 1})}}, "^rope: expected True or False, got 1"),
        ({"mixers": {"L": ("linear", {"lepe": None})}}, "^lepe: expected True or False, got None"),
        ({"mixers": {1: "wkv"}}, "mixers: a key is one letter A-Z, got 1"),
        ({"mixers": {"l": "wkv"}}, "mixers: a key is one letter A-Z, got 'l'"),
        ({"bridges": ["1.2->3.2"]}, "bridges: 1.2->3.2: its target 3.2 is wkv, not softmax"),
        ({"bridges": ["1.2->3.3", "1.2->3.3"]}, "it is wired twice"),
        ({"num_classes": -3}, "num_classes: expected"),
        ({"num_classes": True}, "num_classes: expected a whole number of at least 0, got True"),
        ({"drop_path": 1.5}, "drop_path: expected a rate"),
        ({"in_channels": 0}, "in_channels: expected"),
    ],
)
def test_says_what_is_wrong_before_anything_is_built(arguments, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model(**{"model": "sola_t", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model: expected a name or a BackboneSpec, got int"),
        ({"mixers": "wkv"}, "mixers: expected a mapping"),
        ({"bridges": "1.2->3.3"}, "bridges: expected a list"),
        ({"bridges": 3}, "bridges: expected a list"),
        ({"droppath": 0.1}, "unexpected keyword argument 'droppath'"),
    ],
)
def test_refuses_arguments_of_another_kind(arguments, message):
    with pytest.raises(TypeError, match=message):
        create_model(**{"model": "sola_t", **arguments})


def test_a_backbone_is_built_from_a_spec_alone():
    with pytest.raises(TypeError, match=r"spec: expected a BackboneSpec, got 'sola_t'; create_model takes names"):
        sola_vision.Backbone("sola_t")


@pytest.mark.parametrize("package", [sola_vision, sola_profile])
def test_the_packages_export_and_complete_what_they_list(package):
    assert all(hasattr(package, name) for name in package.__all__)
    # in a process where nothing has loaded late yet
    listed = f"import sys, {package.__name__} as package; sys.exit(not set(package.__all__) <= set(dir(package)))"
    assert subprocess.run([sys.executable, "-c", listed], check=False).returncode == 0


def test_a_misspelt_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sola_vision' has no attribute 'create_modle'"):
        sola_vision.create_modle  # noqa: B018


def filled(seed, **options):
    torch.manual_seed(seed)
    return create_model(SPEC, **options).eval()


def test_weights_survive_the_round_trip(tmp_path):
    source, target = filled(0), filled(1)
    image = torch.randn(1, 3, 40, 24)
    assert not torch.equal(source(image), target(image))
    # a layout that isn't contiguous, and a name that looks like a path already taken
    source = source.to(memory_format=torch.channels_last)
    path = tmp_path / "weights.safetensors"
    path.write_text("old")
    save_weights(source, path)
    assert load_weights(target, path) == []
    assert torch.equal(source(image), target(image))
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_weights_are_saved_through_a_link(tmp_path):
    (tmp_path / "store").mkdir()
    link = tmp_path / "weights.safetensors"
    link.symlink_to(tmp_path / "store" / "real")
    for seed in range(2):
        save_weights(filled(seed), link)
        assert link.is_symlink()
        assert load_file(tmp_path / "store" / "real").keys() == filled(0).state_dict().keys()
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["real"]


def test_the_same_weights_give_the_same_file(tmp_path):
    files = [tmp_path / str(number) for number in range(8)]
    for path in files:
        save_weights(filled(0), path)
    first, *others = [path.read_bytes() for path in files]
    assert all(content == first for content in others)
    # the format asks that numbers begin at a multiple of 8 bytes
    assert int.from_bytes(first[:8], "little") % 8 == 0


def test_weights_are_cast_to_the_model(tmp_path):
    source, target = filled(0), filled(1).bfloat16()
    save_weights(source, tmp_path / "w")
    load_weights(target, str(tmp_path / "w"))
    for (name, wide), narrow in zip(source.named_parameters(), target.parameters(), strict=True):
        assert narrow.dtype == torch.bfloat16
        assert torch.equal(wide.bfloat16(), narrow), name


def test_a_model_without_memory_is_refused_by_name(tmp_path):
    source = filled(0)
    save_weights(source, tmp_path / "w")
    with torch.device("meta"):
        target = create_model(SPEC)
    with pytest.raises(ValueError, match=r"model: its weights are on meta.*to_empty"):
        load_weights(target, tmp_path / "w")
    target.to_empty(device="cpu")
    load_weights(target, tmp_path / "w")
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(target.eval()(image), source(image))


class Sharded(Kept):
    """By its method, a ``DTensor``."""

    def full_tensor(self):
        return self.inner


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Sharded, "got Sharded; gather the weights by its full_tensor.*full_state_dict=True"),
        (Kept, "got Kept; save the weights that it was made from"),
        (torch.Tensor.to_sparse, "got torch.sparse_coo; save the weights"),
        (lambda weight: weight.to("meta"), "got one on meta.*to_empty"),
    ],
)
def test_weights_that_can_not_be_written_are_named(make, message, tmp_path):
    model, name = filled(0), "stages.0.blocks.0.mixer.key.weight"
    part = model.get_submodule(name.rpartition(".")[0])
    part.weight = torch.nn.Parameter(make(part.weight.detach()), requires_grad=False)
    with pytest.raises(ValueError, match=rf"^model: {name}: expected a plain tensor, {message}"):
        save_weights(model, tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_what_is_no_tensor_is_not_written(tmp_path):
    model = filled(0)
    model.register_state_dict_post_hook(lambda module, state, prefix, metadata: state.update(version=(1, 2)))
    with pytest.raises(ValueError, match=r"^model: version: expected a plain tensor, got tuple; torch.save"):
        save_weights(model, tmp_path / "w")


def test_weights_are_loaded_before_a_model_is_sharded(tmp_path):
    save_weights(filled(0), tmp_path / "w")
    model = filled(1)
    model.head.classifier.weight = torch.nn.Parameter(Sharded(model.head.classifier.weight.detach()), False)
    before = model.embedding.projection.weight.clone()
    with pytest.raises(ValueError, match=r"^model: head.classifier.weight: expected a plain tensor, got Sharded; load"):
        load_weights(model, tmp_path / "w")
    assert torch.equal(model.embedding.projection.weight, before)


def test_tied_weights_are_written_under_both_names(tmp_path):
    source, target = filled(0), filled(1)
    mixer = source.stages[0].blocks[0].mixer
    mixer.key.weight = mixer.value.weight
    # and one that is a part of another's memory
    mixer.decay.data = mixer.output.weight.data[0]
    save_weights(source, tmp_path / "w")
    assert load_weights(target, tmp_path / "w") == []
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_the_file_says_which_model_it_holds(tmp_path):
    from safetensors import safe_open

    save_weights(filled(0), tmp_path / "w")
    with safe_open(str(tmp_path / "w"), framework="pt") as file:
        assert file.metadata() == {
            "name": "tiny",
            "pattern": "L|L|LS|LS",
            "mixers": "L=wkv, S=softmax",
            "bridges": "1.1->3.2, 3.1->4.2",
        }


def test_says_which_weights_do_not_fit_and_loads_none(tmp_path):
    save_weights(filled(0), tmp_path / "w")
    other = filled(1, num_classes=3, pattern="S|L|LL|LS", bridges=["3.2->4.2"])
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"the weights in .* don't fit tiny:") as caught:
        load_weights(other, tmp_path / "w")
    message = str(caught.value)
    assert "pattern: 'L|L|LS|LS' in the file, 'S|L|LL|LS' in the model" in message
    assert "bridges: '1.1->3.2, 3.1->4.2' in the file, '3.2->4.2' in the model" in message
    assert "bridges.1_1_to_3_2.linear.weight: not in the model" in message
    assert "bridges.3_2_to_4_2.linear.weight: missing in the file" in message
    assert "head.classifier.bias: (5,) in the file, (3,) in the model" in message
    assert " more" in message.splitlines()[-1]
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_another_classifier_is_left_as_it_was(tmp_path):
    source, target = filled(0), filled(1, num_classes=3)
    save_weights(source, tmp_path / "w")
    with pytest.raises(
        ValueError, match=r"\(5,\) in the file, \(3,\) in the model\n.*\nstrict=False loads all but these$"
    ):
        load_weights(target, tmp_path / "w")
    classifier = target.head.classifier.weight.clone()
    assert load_weights(target, tmp_path / "w", strict=False) == ["head.classifier.bias", "head.classifier.weight"]
    assert torch.equal(target.head.classifier.weight, classifier)
    assert torch.equal(target.embedding.projection.weight, source.embedding.projection.weight)


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "w").write_text("this is no safetensors file")
    with pytest.raises(ValueError, match=r"path: .*w is no safetensors file"):
        load_weights(filled(0), tmp_path / "w")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_weights(filled(0), tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_weights(filled(0), tmp_path / "nowhere" / "w")


def test_a_folder_is_no_weight_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, str(tmp_path), tmp_path / "link"):
        for call in (save_weights, load_weights):
            with pytest.raises(ValueError, match=r"^path: expected a file, got the folder "):
                call(filled(0), path)
    assert [file.name for file in tmp_path.iterdir()] == ["link"]


def test_weights_from_elsewhere_need_no_metadata(tmp_path):
    source, target = filled(0), filled(1)
    save_file(dict(source.state_dict()), tmp_path / "w")
    assert load_weights(target, tmp_path / "w") == []
    save_weights(target, tmp_path / "again")
    assert load_file(tmp_path / "again").keys() == source.state_dict().keys()
