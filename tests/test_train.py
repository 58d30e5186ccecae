"""The trainer: known answers of its parts, and the same bits whatever interrupts it."""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from training import EVERYTHING, SPEC, TINY, numbers

from sola_vision import create_model
from sola_vision.train import Optimiser, Output, Regularisation, proxy_config, train
from sola_vision.train.checkpoint import NAME, write_checkpoint
from sola_vision.train.loop import Trainer
from sola_vision.train.mixing import mix
from sola_vision.train.optim import average, learning_rate, parameter_groups
from sola_vision.train.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


def weights_of(folder):
    """Every weight's bytes; a file's order of metadata is its own."""
    return {
        (path.name, name): value.numpy().tobytes()
        for path in folder.glob("*.safetensors")
        for name, value in load_file(path).items()
    }


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    settings = Optimiser(lr=1.0, min_lr=0.2, warmup=4)
    rates = [learning_rate(settings, step, 12) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[8] == pytest.approx(0.6)
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert rates[11] > 0.2


def test_matrices_alone_decay():
    model = create_model(SPEC)
    decayed, others = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert all(parameter.dim() in (2, 4) for parameter in decayed["params"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(parameter)].rpartition(".")[2] for parameter in others["params"]}
    assert kept == {"bias", "weight", "decay", "bonus", "ratios"}
    assert all(parameter.dim() == 1 for parameter in others["params"] if names[id(parameter)].endswith("weight"))
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_the_average_forgets_at_its_decay():
    averaged = [torch.ones(3)]
    for _ in range(5):
        average(averaged, [torch.zeros(3)], 0.9)
    torch.testing.assert_close(averaged[0], torch.full((3,), 0.9**5))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_images_and_targets_are_mixed_by_the_same_share(mixup, cutmix):
    labels = torch.tensor([0, 1, 2, 3])
    images = F.one_hot(labels, 4).float()[:, :, None, None].expand(4, 4, 8, 8)
    kinds = set()
    for number in range(20):
        settings = Regularisation(mixup=mixup, cutmix=cutmix)
        mixed, targets = mix(images, labels, 4, settings, np.random.default_rng(number))
        torch.testing.assert_close(mixed.mean((2, 3)), targets)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        kinds.add(bool((mixed == mixed[:, :, :1, :1]).all()) or "box")
    assert "box" in kinds or not cutmix
    assert True in kinds or not mixup


def test_the_same_config_gives_the_same_bits_and_leaves_the_callers_random_state(tmp_path):
    config = replace(TINY, regularisation=EVERYTHING, steps=6)
    state = torch.get_rng_state()
    first = train(replace(config, output=Output(tmp_path / "a")))
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    second = train(replace(config, output=Output(tmp_path / "b", checkpoint_every=2, eval_every=2, log_every=1)))
    assert numbers(first) == numbers(second)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    assert numbers(train(replace(config, seed=3))) != numbers(first)
    assert json.loads((tmp_path / "a/result.json").read_text())["correct"] == first.correct
    with (tmp_path / "b/log.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["step"] for line in lines if line["train_loss"]] == list("123456")
    assert [line["step"] for line in lines if line["accuracy"]] == list("246")


def test_a_proxy_learns():
    config = replace(proxy_config("count", "LS"), data="task:count:patch=8,classes=2,objects=1,noise=0.1")
    assert train(replace(config, steps=40, batch=16, eval_size=128)).accuracy > 0.9


def test_autocast_changes_the_digits_and_little_else():
    plain, half = (train(replace(TINY, steps=2, amp=amp, optimiser=Optimiser())) for amp in (False, True))
    assert plain.loss != half.loss
    assert half.loss == pytest.approx(plain.loss, rel=0.02)


def test_a_run_killed_in_the_middle_goes_on_to_the_same_bits(tmp_path):
    config = replace(TINY, steps=40, regularisation=EVERYTHING, output=Output(tmp_path / "cut", checkpoint_every=4))
    unbroken = train(replace(config, output=Output(tmp_path / "whole")))
    code = (
        "import sys, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[1])\n"
        "import time; from training import *; from sola_vision.train import *\n"
        "train(replace(TINY, steps=40, regularisation=EVERYTHING, "
        "output=Output(sys.argv[2], checkpoint_every=4)), "
        "progress=lambda step, *_: time.sleep(0.02 if step < 36 else 600))"
    )
    here = os.path.dirname(__file__)
    child = subprocess.Popen([sys.executable, "-c", code, here, str(config.output.folder)])
    checkpoint = config.output.folder / NAME
    while not checkpoint.exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    # as if it had died while it wrote
    (config.output.folder / f"{NAME}.part").write_bytes(checkpoint.read_bytes()[:1000])
    step = torch.load(checkpoint, weights_only=True)["step"]
    assert 0 < step < 40
    seen = []
    resumed = train(config, resume=True, progress=lambda at, *_: seen.append(at))
    assert seen == list(range(step + 1, 41))
    assert numbers(resumed) == numbers(unbroken)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")


def test_a_run_that_is_stopped_keeps_its_step(tmp_path):
    config = replace(TINY, steps=5, output=Output(tmp_path, log_every=1))
    with pytest.raises(KeyboardInterrupt):
        train(config, stop=lambda: True)
    # a line of a part that was lost, and one that was cut off
    with (tmp_path / "log.csv").open("a") as file:
        file.write("4,1,1,,,,1\n5,1")
    assert numbers(train(config, resume=True)) == numbers(train(replace(config, output=Output())))
    with (tmp_path / "log.csv").open() as file:
        assert [line["step"] for line in csv.DictReader(file)] == list("123455")


def test_a_finished_run_that_is_resumed_changes_nothing(tmp_path):
    config = replace(TINY, steps=4, output=Output(tmp_path, log_every=2, eval_every=2))
    first = train(config)
    before = (tmp_path / "log.csv").read_text()
    assert train(config, resume=True) == first
    assert (tmp_path / "log.csv").read_text() == before


def test_a_checkpoint_is_written_through_a_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(tmp_path / "elsewhere.pt")
    train(replace(TINY, steps=2, output=Output(tmp_path / "run")))
    assert (tmp_path / "run" / NAME).is_symlink()
    assert torch.load(tmp_path / "elsewhere.pt", weights_only=True)["step"] == 2


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    config = replace(TINY, steps=2, output=Output(tmp_path))
    (tmp_path / NAME).write_bytes(b"old")
    (tmp_path / f"{NAME}.part").write_bytes(b"cut off")
    monkeypatch.setattr(Path, "open", lambda *_, **__: Full())
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/checkpoint.pt'"):
        write_checkpoint(tmp_path, config, {"model": {"weight": torch.ones(9)}})
    monkeypatch.undo()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(NAME, b"old")]


def test_a_folder_with_a_run_is_neither_overwritten_nor_mistaken(tmp_path):
    config = replace(TINY, steps=1, output=Output(tmp_path))
    train(config)
    with pytest.raises(ValueError, match="holds a run already"):
        train(config)
    with pytest.raises(ValueError, match="told something else:\n  seed: 2 there, 9 here"):
        train(replace(config, seed=9), resume=True)
    (tmp_path / NAME).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"checkpoint.pt is no checkpoint"):
        train(config, resume=True)
    with pytest.raises(ValueError, match="resume: needs the output folder"):
        train(replace(config, output=Output()), resume=True)


@pytest.mark.parametrize(
    ("kept", "resumes"),
    [("model.safetensors", False), ("model_ema.safetensors", False), ("result.json", False), ("log.csv", True)],
)
def test_a_run_whose_checkpoint_is_gone_is_not_overwritten(tmp_path, kept, resumes):
    config = replace(TINY, steps=2, output=Output(tmp_path, log_every=1))
    train(config)
    for path in tmp_path.iterdir():
        if path.name != kept:
            path.unlink()
    content = (tmp_path / kept).read_bytes()
    hint = "resume it, or choose" if resumes else "choose"
    with pytest.raises(ValueError, match=rf"^out: .* holds a run already \({kept}\); {hint} another folder$"):
        train(config)
    if not resumes:
        with pytest.raises(
            ValueError, match=rf"^resume: .* holds {kept} of a run that has ended, and no checkpoint.pt"
        ):
            train(config, resume=True)
    assert (tmp_path / kept).read_bytes() == content
    if resumes:
        assert train(config, resume=True).steps == 2


def test_ctrl_c_during_a_checkpoint_leaves_no_part_of_one(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, TINY, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": None}, "data: expected text or a Path, got None"),
        ({"output": "run"}, r"output: expected Output\(...\), got 'run'"),
        ({"optimiser": {"lr": 1e-3}}, r"optimiser: expected Optimiser\(...\), got {'lr': 0.001}"),
        ({"regularisation": None}, r"regularisation: expected Regularisation\(...\), got None"),
        ({"amp": "no"}, "amp: expected True or False, got 'no'"),
        ({"device": None}, "device: expected cpu, cuda or cuda:N, got None"),
        ({"batch": True}, "batch: expected a whole number of at least 1, got True"),
        ({"seed": 2.0}, "seed: expected a whole number of at least 0, got 2.0"),
    ],
)
def test_fields_of_another_kind_are_named(change, words):
    with pytest.raises((TypeError, ValueError), match=f"^{words}$"):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tensorboard": "no"}, "tensorboard: expected True or False, got 'no'"),
        ({"folder": 3}, "folder: expected text or a Path, got 3"),
    ],
)
def test_fields_of_the_output_are_named(change, words):
    with pytest.raises((TypeError, ValueError), match=f"^{words}$"):
        Output(**change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": None}, "either steps or epochs"),
        ({"steps": None, "epochs": 2}, "epochs: .* makes new images for ever"),
        ({"batch": 0}, "batch: expected a whole number of at least 1, got 0"),
        ({"init": "xavier"}, "init: expected one of model, fan_in"),
        ({"regularisation": Regularisation(erasing=0.5)}, "for folders of images only"),
        ({"device": "gpu"}, "device: expected cpu, cuda or cuda:N, got 'gpu'"),
        ({"model": "sola_q"}, "no preset is named 'sola_q'; did you mean"),
    ],
)
def test_errors_name_the_field(change, words):
    with pytest.raises(ValueError, match=words):
        train(replace(TINY, **change))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lr", 0, "lr: expected a number of more than 0"),
        ("min_lr", 1.0, "min_lr: expected a number of at least 0 and at most 0.001"),
        ("betas", (0.9,), "betas: expected two numbers"),
        ("ema", 1.0, "ema: expected a number of at least 0 and less than 1"),
    ],
)
def test_errors_name_the_field_of_the_optimiser(field, value, words):
    with pytest.raises(ValueError, match=words):
        Optimiser(**{field: value})


def test_a_loss_that_is_no_number_ends_the_run():
    with pytest.raises(FloatingPointError, match="at step 2"):
        train(replace(TINY, optimiser=Optimiser(lr=1e30, clip=0)))


def test_tensorboard_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="TensorBoard is not installed: pip install tensorboard"):
        train(replace(TINY, output=Output(tmp_path, tensorboard=True)))
    with pytest.raises(ValueError, match="tensorboard: writes into the output folder"):
        Output(tensorboard=True)


RANKS = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from training import *
from sola_vision.train.loop import Trainer
from sola_vision.train.log import Log
from sola_vision.train.world import join
with join("cpu") as world:
    trainer = Trainer(TINY, world)
    result = trainer.run(Log(None, 0, ended=False, tensorboard=False), None, None)
    torch.save((numbers(result), trainer.model.state_dict()), f"{sys.argv[2]}/{world.rank}.pt")
"""


def launch_two(folder, program):
    """Run a program in two processes, with the folders of the tests and of its files as arguments."""
    (folder / "ranks.py").write_text(program)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(folder / "ranks.py"), os.path.dirname(__file__), str(folder)],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


STOPPING = """
import os, sys
from dataclasses import replace
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from training import *
from sola_vision.train import Output, train
asked = []
def stop():
    asked.append(None)
    return os.environ["RANK"] == "1" and len(asked) == 5
try:
    train(replace(TINY, output=Output(sys.argv[2])), stop=stop)
except KeyboardInterrupt:
    open(f"{sys.argv[2]}/stopped{os.environ['RANK']}", "x").close()
"""


def test_one_of_two_processes_stops_both_and_their_state_is_kept(tmp_path):
    launch_two(tmp_path, STOPPING)
    assert (tmp_path / "stopped0").exists()
    assert (tmp_path / "stopped1").exists()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5


def test_two_processes_share_a_batch_and_agree(tmp_path):
    launch_two(tmp_path, RANKS)
    (first, weights), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    alone = train(TINY)
    assert first["total"] == alone.total == 30
    assert first["train_loss"] == pytest.approx(alone.train_loss, rel=1e-3)
    assert first["loss"] == pytest.approx(alone.loss, rel=1e-3)
    with pytest.raises(ValueError, match="batch: expected a multiple of the 3 processes, got 4"):
        Trainer(TINY, World(0, 3, torch.device("cpu")))
