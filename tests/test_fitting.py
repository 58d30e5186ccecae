"""What fits in a given memory: the search against brute force, the answers against real runs under a limit."""

import os

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sola_profile import fitting
from sola_profile.case import Resolution, Settings
from sola_profile.cost.liveness import predict_peak
from sola_profile.cost.symbolic import model_formula
from sola_profile.fitting import Confirmation, Fitted, Fitting, most_that_fits, run_under_limit
from sola_profile.measure.peak_memory import measure_peak_bytes
from sola_profile.report.fit_table import fit_table
from sola_profile.source import read_source
from sola_profile.workload import build

MIB = 2**20


# the last: guesses come down from above, one by one
@given(st.integers(0, 500), st.integers(1, 50), st.integers(0, 9), st.integers(1, 3000), st.sampled_from([1, 2]))
@example(0, 1, 5, 1246, 2)
def test_the_search_finds_what_counting_finds(base, rise, wobble, limit, power):
    def total(number):
        return base + rise * number**power + (number * wobble) % 7

    values = [total(number) for number in range(62)]
    if sorted(values) != values:
        values.sort()
    asked = []

    def looked_up(number):
        asked.append(number)
        return values[number]

    found, taken, further = most_that_fits(looked_up, limit, 60, power)
    expected = max((number for number in range(1, 61) if values[number] <= limit), default=0)
    assert found == expected
    assert taken == values[max(1, expected)]
    assert further == (values[expected + 1] if expected < 60 else None)
    assert len(asked) == len(set(asked)) <= 20


def test_the_largest_batch_is_the_last_that_is_predicted_to_fit():
    settings, resolution = Settings(mode="train", optimizer="sgd", threads=1), Resolution(64, 64)
    fitting = Fitting(read_source("sola_t"), settings, 200 * MIB, headroom=0.0)
    list(fitting.run([resolution], confirm=False))
    (found,) = fitting.batches
    for batch, fits in ((found.batch, True), (found.batch + 1, False)):
        workload = build(fitting.source, Settings(mode="train", optimizer="sgd", batch=batch), "meta")
        assert (predict_peak(workload, resolution).total_bytes <= 200 * MIB) == fits
    assert found.total_bytes <= 200 * MIB < found.next_bytes
    assert fitting.square.total_bytes <= 200 * MIB < fitting.square.next_bytes


def test_an_answer_runs_under_the_limit_and_twice_as_much_does_not(sola_profile):
    code, out, err = sola_profile(
        *("fit", "--model", "sola_t", "--memory", "150MiB", "--res", "224", "--threads", "1", "--confirm")
    )
    assert code == 0
    assert "running" in err
    assert out.count("ran, grew by") == 2
    asked = {"model": "sola_t", "settings": {"batch": 40}, "shape": None, "resolution": "224", "limit_bytes": 150 * MIB}
    ended = run_under_limit(asked)
    assert (ended.ran, ended.why) == (False, "out of memory")


def asked_of(model, limit, **settings):
    settings = {"threads": 1, **settings}
    return {"model": model, "settings": settings, "shape": None, "resolution": "64", "limit_bytes": limit * MIB}


def test_what_a_run_grew_by_is_what_the_limit_counts():
    # its tensors take 94.8 MiB; pages of library files, 15 MiB more, are no part of either
    ended = run_under_limit(asked_of("sola_t", 100, batch=65))
    assert ended.ran
    assert 90 * MIB < ended.peak_bytes <= 100 * MIB


def test_a_run_holds_what_its_optimizer_keeps():
    settings = Settings(mode="train", optimizer="adamw", batch=8, threads=1)
    predicted = predict_peak(build(read_source("sola_t"), settings, "meta"), Resolution(64, 64))
    ended = run_under_limit(asked_of("sola_t", 300, mode="train", optimizer="adamw", batch=8))
    assert ended.peak_bytes > predicted.total_bytes


# neither is told by a limit on private writable mappings: shared memory, and what is never touched
ODD = """
import mmap

import torch


class Untouched(torch.nn.Module):
    def forward(self, image):
        torch.empty(64 * 2**20, dtype=torch.uint8)
        return image


class Sharing(torch.nn.Module):
    def forward(self, image):
        self.block = mmap.mmap(-1, 64 * 2**20)
        for _ in range(64):
            self.block.write(bytes(2**20))
        return image
"""


def test_a_run_is_judged_by_the_memory_that_it_touched(tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    ended = run_under_limit(asked_of("odd:Sharing", 40))
    assert (ended.ran, ended.why) == (False, "took more than the limit")
    untouched = run_under_limit(asked_of("odd:Untouched", 40))
    assert untouched.ran
    assert untouched.peak_bytes < 8 * MIB
    shown = fit_table(
        Fitting(read_source("sola_t"), Settings(), 40 * MIB, batches=[Fitted(Resolution(64, 64), 1, 1, 2, ended)]),
        "40MiB",
    )
    assert shown.rows[0][4].startswith("failed: took more than the limit, grew by 6")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--memory", "10MiB"), 5, "not one image of these sizes fits in 10MiB"),
        (("--memory", "much"), 2, "expected a memory such as 8GiB"),
        (("--memory", "1GiB", "--optimizer", "sgd"), 2, "optimizer: belongs to mode train"),
        (("--memory", "1GiB", "--headroom", "100"), 2, "expected 0 to 100"),
        (("--memory", "1GiB", "--input", "1x1xHxW"), 2, "sola_t takes 1x3xHxW, got 1x1xHxW"),
    ],
)
def test_what_does_not_fit_or_is_typed_wrong_says_so(sola_profile, arguments, code, message):
    found, _, err = sola_profile("fit", "--model", "sola_t", "--res", "64", *arguments)
    assert found == code
    assert message in err


def test_memory_for_more_than_the_largest_image_has_no_next(monkeypatch):
    monkeypatch.setattr(fitting, "MAX_SIDE", 128)
    found = Fitting(read_source("sola_t"), Settings(threads=1), 2**40)
    for _ in found.run([], confirm=False):
        pass
    assert str(found.square.resolution) == "128"
    assert found.square.next_bytes is None
    assert fit_table(found, "1TiB").rows[0][3] == "–"


def test_an_answer_whose_run_fails_is_no_success(sola_profile, monkeypatch):
    monkeypatch.setattr(fitting, "run_under_limit", lambda _: Confirmation(False, None, "out of memory"))
    code, out, err = sola_profile("fit", "--model", "sola_t", "--memory", "150MiB", "--res", "224", "--confirm")
    assert code == 5
    assert "failed: out of memory" in out
    assert "sola_t in 150MiB, 5% of it kept free" in out
    assert "at 224: out of memory" in err


# heads of 8 channels at 400 positions: the fast path of nn.MultiheadAttention holds all weights
ATTENDING = """
from torch import nn


class Attending(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.patches, self.layer = nn.Conv2d(3, 32, 8, 8), layer

    def forward(self, image):
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(tokens, tokens, tokens, need_weights=False)[0]
        return self.layer(tokens)


def attention():
    return Attending(nn.MultiheadAttention(32, 4, batch_first=True))


def encoder():
    return Attending(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True))
"""


@pytest.mark.parametrize("name", ["attention", "encoder"])
def test_multi_head_attention_is_predicted_as_the_fast_path_runs(name, tmp_path, monkeypatch):
    (tmp_path / "attending.py").write_text(ATTENDING)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = read_source(f"attending:{name}")
    for batch in (1, 2):
        settings, size = Settings(batch=batch, threads=1), Resolution(160, 160)
        predicted = predict_peak(build(source, settings, "meta"), size)
        workload = build(source, settings)
        step = workload.step(workload.image(size))
        step()
        measured = measure_peak_bytes(step, torch.device("cpu"))
        assert predicted.step_bytes == pytest.approx(measured, rel=0.01)
        formula = model_formula(source, source.default_input.with_batch(batch))
        assert formula.memory(size).step_bytes == pytest.approx(measured, rel=0.01)
    assert torch.backends.mha.get_fastpath_enabled()


def test_multi_head_attention_that_trains_takes_the_fused_kernel(tmp_path, monkeypatch):
    (tmp_path / "attending.py").write_text(ATTENDING)
    monkeypatch.syspath_prepend(str(tmp_path))
    workload = build(read_source("attending:attention"), Settings(mode="train"), "meta")
    assert predict_peak(workload, Resolution(160, 160)).step_bytes < 4 * 4 * 400**2
