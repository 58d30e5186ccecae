"""Weights go into files that are whole, from models that are wrapped or not, and come back as the numbers that they were."""

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sola_vision import Backbone, BackboneSpec, create_model, load_weights, save_weights

SPEC = BackboneSpec("tiny", (8, 8, 8, 8), "L|L|L|S", head_dim=8, num_classes=3)
NAME = "head.classifier.weight"

# torch's compiler and its quantisation use what torch deprecates
loads_deprecated = pytest.mark.filterwarnings("ignore")


def filled(seed=0):
    torch.manual_seed(seed)
    return create_model(SPEC).eval()


@pytest.mark.parametrize("call", [save_weights, load_weights])
def test_a_pipe_is_refused_and_stays_one(call, tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, str(link)):
        with pytest.raises(ValueError, match=r"^path: expected a regular file, got the pipe "):
            call(filled(), path)
    assert pipe.is_fifo()


@pytest.mark.parametrize("call", [save_weights, load_weights])
def test_a_link_to_itself_is_the_system_s_error(call, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop") as caught:
        call(filled(), tmp_path / "loop")
    assert caught.value.errno == errno.ELOOP


def test_a_file_that_may_not_be_read_is_not_a_missing_one():
    user = os.geteuid()
    # in a folder that anybody may enter
    with tempfile.NamedTemporaryFile() as file:
        os.fchmod(file.fileno(), 0)
        model = filled()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(PermissionError, match=file.name):
                load_weights(model, file.name)
        finally:
            os.seteuid(user)


def test_saves_to_one_path_at_once_leave_a_whole_file(tmp_path):
    """Every file that is found under the name is one of those that were written."""
    target, models, failed = tmp_path / "w", [filled(seed) for seed in range(4)], []
    for seed, model in enumerate(models):
        save_weights(model, tmp_path / str(seed))
    contents = [(tmp_path / str(seed)).read_bytes() for seed in range(4)]

    def write(model):
        try:
            for _ in range(10):
                save_weights(model, target)
                assert target.read_bytes() in contents
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(list(tmp_path.iterdir())) == 5


def test_a_save_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "w").write_text("old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/w'"):
        save_weights(filled(), tmp_path / "w")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("w", "old")]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_has_the_mode_that_the_umask_leaves(mask, tmp_path):
    old = os.umask(mask)
    try:
        save_weights(filled(), tmp_path / "w")
    finally:
        os.umask(old)
    assert (tmp_path / "w").stat().st_mode & 0o777 == 0o666 & ~mask


@loads_deprecated
def test_a_quantised_model_is_refused_by_name(tmp_path):
    save_weights(filled(), tmp_path / "w")
    model = torch.ao.quantization.quantize_dynamic(filled(), {torch.nn.Linear})
    with pytest.raises(ValueError, match=r"^model: \S+: expected a plain tensor, got \w+; load before .*quantising"):
        load_weights(model, tmp_path / "w")
    with pytest.raises(ValueError, match=r"^model: \S+: expected a plain tensor, got "):
        save_weights(model, tmp_path / "again")


@loads_deprecated
def test_compiled_models_and_plain_ones_share_files(tmp_path):
    compiled, partly, plain = torch.compile(filled(1)), filled(2), filled(3)
    partly.stages[0] = torch.compile(partly.stages[0])
    for number, (source, target) in enumerate([(plain, compiled), (compiled, partly), (partly, filled())]):
        save_weights(source, tmp_path / str(number))
        assert load_file(tmp_path / str(number)).keys() == plain.state_dict().keys()
        assert load_weights(target, tmp_path / str(number)) == []
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in target.state_dict().items())


class Features(torch.nn.Module):
    """Holds a model as timm's ``FeatureGetterNet`` does."""

    def __init__(self, model):
        super().__init__()
        self.model = model


@loads_deprecated
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (torch.nn.DataParallel, "DataParallel; pass its .module$"),
        (torch.optim.swa_utils.AveragedModel, "AveragedModel; pass its .module$"),
        (Features, "Features; pass its .model$"),
        (lambda model: torch.compile(Features(model)), "OptimizedModule; pass its ._orig_mod.model$"),
        (lambda model: model.head, "Head; pass the backbone itself$"),
        (Backbone.state_dict, "OrderedDict; pass the backbone itself$"),
    ],
)
def test_what_is_no_backbone_is_named_with_what_to_pass(wrap, message, tmp_path):
    for call in (save_weights, load_weights):
        with pytest.raises(TypeError, match=f"^model: expected a Backbone, as create_model returns it, got {message}"):
            call(wrap(filled()), tmp_path / "w")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.to(torch.complex64), "expected floating-point numbers, got torch.complex64"),
        (lambda weight: weight.to(torch.int32), "expected floating-point numbers, got torch.int32"),
        (lambda weight: weight * 0 + 7e4, "expected at most 65504, the range of torch.float16, got 70000"),
    ],
)
def test_numbers_that_the_model_can_not_hold_are_named(change, message, strict, tmp_path):
    saved = filled(1).state_dict()
    save_file({**saved, NAME: change(saved[NAME])}, tmp_path / "w")
    model = filled().half()
    before = model.embedding.projection.weight.clone()
    with pytest.raises(ValueError, match=f"^path: {NAME} in .*w: {message}$"):
        load_weights(model, tmp_path / "w", strict=strict)
    assert torch.equal(model.embedding.projection.weight, before)


def test_infinities_and_rounded_numbers_are_loaded_as_they_are(tmp_path):
    saved = filled(1).state_dict()
    saved[NAME] = torch.full_like(saved[NAME], 65_510.0)
    saved[NAME][0, 0] = torch.inf
    save_file(saved, tmp_path / "w")
    model = filled().half()
    load_weights(model, tmp_path / "w")
    assert torch.equal(model.head.classifier.weight, saved[NAME].half())
