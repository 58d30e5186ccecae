"""The generated tasks: right labels, known ceilings, samples that come again and never meet."""

import numpy as np
import pytest

from sola_vision.train import proxy_config
from sola_vision.train.tasks import _COLOURS, Match, read_task, stripes

SAMPLES = range(400)


def as_cells(task, images):
    """Sum over channels of every cell, ``(B, cells, patch²)``."""
    side = task.patch
    cells = task.size // side
    x = images[:, :, : cells * side, : cells * side].sum(1, dtype=np.float64)
    return x.reshape(len(images), cells, side, cells, side).swapaxes(2, 3).reshape(len(images), cells**2, side**2)


def observe_texture(task, images):
    """The likelihood of each direction, given everything that the task's docstring says."""
    side = task.patch
    gratings = stripes(side).astype(np.float64).reshape(4, 4, side**2)
    fit = np.einsum("bnp,kfp->bnkf", as_cells(task, images), gratings) - 3 * (gratings**2).sum(-1) / 2
    ratio = np.exp(fit / task.noise**2).mean(-1)
    return np.log(1 - task.density + task.density * ratio).sum(1).argmax(1)


def observe_count(task, images):
    """The sign of the matched filter in the cells where it is largest."""
    half = task.patch // 2
    shape = np.kron([[1, -1], [-1, 1]], np.ones((half, half))).ravel()
    fit = as_cells(task, images) @ shape
    objects = np.argsort(-abs(fit), axis=1)[:, : task.objects]
    return (np.take_along_axis(fit, objects, axis=1) > 0).sum(1)


def observe_match(task, images):
    """The pair of places with the brightest rings, and whether one colour fits both best."""
    side, apart, cells = task.patch, task.d, task.size // task.patch
    edge = max(side // 4, 1)
    ring = np.ones((side, side))
    ring[edge : side - edge, edge : side - edge] = 0
    starts = range(0, task.size - side - apart + 1, side)
    pairs = [((across * side, start), (across * side, start + apart)) for start in starts for across in range(cells)]
    pairs += [(first[::-1], second[::-1]) for first, second in pairs]

    def window(place):
        return images[:, :, place[0] : place[0] + side, place[1] : place[1] + side]

    rings = np.array([sum((window(end) * ring).sum((1, 2, 3)) for end in pair) for pair in pairs])
    colours = np.array(
        [[((window(end) * (1 - ring)).sum((2, 3)) @ _COLOURS[: task.kinds].T).argmax(1) for end in p] for p in pairs]
    )
    first, second = colours[rings.argmax(0), :, np.arange(len(images))].T
    return (first == second).astype(int)


@pytest.mark.parametrize(
    ("name", "observe"), [("match", observe_match), ("count", observe_count), ("texture", observe_texture)]
)
def test_an_observer_that_knows_the_task_reaches_its_ceiling(name, observe):
    for task in (read_task(name, 32), read_task(proxy_config(name, "LLLLLL").data.removeprefix("task:"), 24)):
        images, labels = task.samples("eval", 3, SAMPLES)
        assert images.shape == (len(SAMPLES), 3, task.size, task.size)
        assert np.mean(observe(task, images) == labels) > 0.97
        shares = np.bincount(labels, minlength=task.classes) / len(labels)
        # four standard errors of a fair share
        assert np.all(abs(shares - 1 / task.classes) < 4 * (1 / task.classes / len(labels)) ** 0.5)


@pytest.mark.parametrize("name", ["match", "count", "texture"])
def test_a_sample_is_a_function_of_split_seed_and_index(name):
    task = read_task(name, 24)
    images, labels = task.samples("train", 5, [7, 8, 9])
    again, label = task.samples("train", 5, [8])
    assert np.array_equal(images[1:2], again)
    assert labels[1] == label[0]
    for other in (("eval", 5), ("train", 6)):
        # a few of five thousand float32 meet by chance
        assert np.isin(images, task.samples(*other, [7, 8, 9])[0]).mean() < 0.01


def test_marks_of_a_match_are_so_far_apart():
    task = Match(size=40, d=22, patch=5, noise=0, distractors=0, kinds=6)
    images, labels = task.samples("train", 0, range(64))
    for image, label in zip(images, labels, strict=True):
        rows, columns = np.nonzero((image == image.max()).all(0))
        spread = sorted((np.ptp(rows) - 4, np.ptp(columns) - 4))
        assert spread == [0, 22]
        ends = image[:, rows.min() + 2, columns.min() + 2], image[:, rows.max() - 2, columns.max() - 2]
        assert np.array_equal(*ends) == bool(label)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("macth", "no task is named 'macth'; did you mean 'match'"),
        ("match:dd=3", "no option 'dd'; did you mean 'd'"),
        ("match:d=far", "d: expected a number"),
        ("match:d=400", "d: expected a whole number from 4 to 28, got 400"),
        ("count:classes=20", "classes: expected a whole number from 2 to 9, got 20"),
        ("texture:noise=-1", "noise: expected a number from 0 to 10, got -1"),
        ("texture:patch=99", "patch: expected a whole number from 2 to 10, got 99"),
    ],
)
def test_errors_name_the_option_and_the_nearest(text, words):
    with pytest.raises(ValueError, match=words):
        read_task(text, 32)
