"""Folders of images: what a run sees of them, and in which order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training import ALONE, SPEC

from sola_profile.source import _package
from sola_vision.imagenet import DEVIATION, MEAN
from sola_vision.train import Optimiser, Output, Regularisation, TrainConfig, train
from sola_vision.train.folder import FolderSource, list_images, read_image
from sola_vision.train.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    """Five images of two classes for training and three for evaluation, each of one colour."""
    colours = {"train": {"blue": [10, 20, 30], "red": [40, 50]}, "val": {"blue": [60], "red": [70, 80]}}
    for split, classes in colours.items():
        for name, values in classes.items():
            (tmp_path / split / name).mkdir(parents=True)
            for value in values:
                image = Image.new("RGB", (30 + value, 40), (value, 0, 255 - value))
                image.save(tmp_path / split / name / f"{value}.png")
    return tmp_path


def folder_config(folder, **changes):
    return replace(TrainConfig(SPEC, str(folder), size=16, epochs=2, batch=2, eval_size=0), **changes)


def red(images):
    """The red value that the images of the fixture are told apart by."""
    return [round(float(value * DEVIATION[0] + MEAN[0]) * 255) for value in images[:, 0].mean((1, 2))]


def test_every_epoch_sees_every_image_of_a_folder_once(folder):
    source = FolderSource(folder_config(folder), ALONE)
    assert (source.classes, source.steps()) == (2, 5)
    batches = list(source.train_batches(0, 5))
    seen = [value for images, _ in batches for value in red(images)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == [10, 20, 30, 40, 50]
    assert seen[:5] != seen[5:]
    assert all(
        label == (value >= 40) for images, labels in batches for value, label in zip(red(images), labels, strict=True)
    )
    images, labels = next(iter(source.eval_batches()))
    assert (red(images), labels.tolist()) == ([60, 70, 80], [0, 1, 1])
    # two processes see all of it between them
    shares = [FolderSource(folder_config(folder), World(rank, 2, torch.device("cpu"))) for rank in range(2)]
    assert sorted(v for share in shares for images, _ in share.eval_batches() for v in red(images)) == [60, 70, 80]


def test_images_of_a_folder_are_the_same_from_workers_and_from_any_step(folder):
    # it knows how to load timm beside a torchvision that was built for another torch
    _package("timm")
    gradient = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    Image.fromarray(gradient).save(folder / "train/red/40.png")
    changes = Regularisation(rand_augment="rand-m9-mstd0.5-inc1", erasing=0.5)
    config = folder_config(folder, regularisation=changes)
    alone = list(FolderSource(config, ALONE).train_batches(0, 5))
    helped = list(FolderSource(replace(config, workers=1), ALONE).train_batches(2, 5))
    for (images, labels), (others, other_labels) in zip(alone[2:], helped, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    plain = list(FolderSource(folder_config(folder), ALONE).train_batches(0, 5))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(alone, plain, strict=True))


def test_a_run_does_not_go_on_with_other_images(folder, tmp_path):
    config = folder_config(folder, output=Output(tmp_path / "run"))
    train(config)
    train(config, resume=True)
    # the same run in other words
    respelt = {
        "data": Path(f"{folder}/"),
        "epochs": np.float64(2),
        "batch": np.int64(2),
        "optimiser": Optimiser(ema=0, clip=5),
    }
    train(replace(config, **respelt), resume=True)
    (folder / "train/red/40.png").rename(folder / "train/red/41.png")
    with pytest.raises(ValueError, match=r"^resume: .*/train holds other images than the run began with"):
        train(config, resume=True)


def test_wide_pixels_keep_their_brightness_or_are_refused(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for order in ("<u2", ">u2"):
        Image.fromarray(grey.astype(order) * 257).save(tmp_path / "wide.tiff")
        assert np.array_equal(np.asarray(read_image(tmp_path / "wide.tiff"))[..., 1], grey)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "wide.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "wide.png"))[..., 1], grey)
    for dtype in (np.int32, np.float32):
        Image.fromarray(grey.astype(dtype)).save(tmp_path / "wider.tiff")
        with pytest.raises(ValueError, match=r"can't read the image .*wider.tiff: its mode is [IF], 32 bits per pixel"):
            read_image(tmp_path / "wider.tiff")


def test_transparent_palettes_are_read_without_a_warning(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    assert np.asarray(read_image(tmp_path / "palette.png"))[2, 2].tolist() == [10, 20, 30]


def test_folders_and_hidden_entries_are_no_images(folder):
    (folder / "train/red/v1.jpg").mkdir()
    (folder / "train/red/40.png").rename(folder / "train/red/v1.jpg/40.png")
    for hidden in (".ipynb_checkpoints", "red/.thumbnails"):
        (folder / "train" / hidden).mkdir()
        (folder / "train" / hidden / "1.png").write_bytes(b"no image")
    (folder / "train/blue/._10.png").write_bytes(b"no image")
    classes, images = list_images(folder / "train")
    assert classes == ["blue", "red"]
    assert [path.name for path, _ in images] == ["10.png", "20.png", "30.png", "50.png", "40.png"]


def test_whatever_a_decoder_raises_names_the_file(folder, monkeypatch):
    # a header that claims 400 million pixels
    (folder / "val/red/80.png").write_bytes(b"P6 20000 20000 255\n")
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"^data: can't read the image .*val/red/80.png: Image size \(4"):
            list(FolderSource(folder_config(folder, workers=workers), ALONE).eval_batches())

    def fail(_):
        raise RuntimeError("Failed to decode image")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ValueError, match=r"^data: can't read the image a.avif: Failed to decode image"):
        read_image("a.avif")


def test_errors_name_the_folder_and_the_file(folder):
    result = train(folder_config(folder))
    assert (result.total, result.steps) == (3, 5)
    (folder / "val/red/80.png").write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"^data: can't read the image .*val/red/80.png: cannot identify"):
            train(folder_config(folder, workers=workers))
    (folder / "train/green").mkdir()
    with pytest.raises(ValueError, match="train/green holds no image"):
        train(folder_config(folder))
    Image.new("RGB", (4, 4)).save(folder / "train/green/1.png")
    with pytest.raises(ValueError, match="differ in their classes: green"):
        train(folder_config(folder))
    with pytest.raises(ValueError, match="there is no folder"):
        train(folder_config(folder / "train"))
