"""A whole study: its result, its reports, the command."""

import hashlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import altair
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from schemas import conforming
from study_models import SIZE, TINY

import sola_profile
from sola_profile.case import Resolution
from sola_profile.report.study_charts import study_charts
from sola_profile.study import instruments, materialized
from sola_profile.study.horizons import FIXED, OWN
from sola_profile.study.images import Samples
from sola_profile.study.mixing import WKVMixing, mixing_of
from sola_vision import create_model, presets, save_weights
from sola_vision.layers import mixers
from sola_vision.layers.mixers.decay import DecayAttention


@pytest.fixture(scope="module")
def studied():
    """A whole study of the tiny backbone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instruments, "HORIZON_SIZES", (Resolution(32, 32),))
        return sola_profile.study_model(TINY, [SIZE], count=2, matrices=3, rows=20)


def test_a_study_has_every_figure_of_every_layer(studied):
    (size,) = studied.sizes
    assert studied.agrees
    assert [str(layer.place) for layer in size.layers] == [str(layer.id) for layer in TINY.layers()]
    assert all(layer.error < 1e-12 for layer in size.layers)
    # a mean of rows is no more pointed than they are
    assert all(layer.mean.entropy >= layer.rows_mean.entropy - 0.05 for layer in size.layers)
    assert {layer.rows for layer in size.layers} == {20, 12, 4}
    assert [len(layer.matrices) for layer in size.layers] == [3, 3, 2, 2, 3, 3, 3, 3]
    # one for each image, of the first as many rows as there are
    assert all(len(layer.entropies) == 2 for layer in size.layers)
    assert size.layers[-1].entropies[0] == pytest.approx(size.layers[-1].rows_mean.entropy)
    assert size.layers[-1].entropies[0] != size.layers[-1].entropies[1]
    by_letter = {layer.letter: layer for layer in size.layers}
    assert by_letter["L"].known_mean("confusion") is None
    assert by_letter["R"].rows_mean.negative > 0
    assert by_letter["N"].known_mean("state_rank") == 8
    assert [depth.is_softmax for depth in size.depths] == [False, False, True, False, False, False, True, True]
    apart = [depth.apart for depth in size.depths]
    assert apart[-1] < apart[0] < 1
    for depth in size.depths:
        areas = list(depth.areas.values())
        assert areas == sorted(areas)
        assert 0 < areas[0] <= areas[-1] <= 1
    assert [row[index] for index, row in enumerate(size.cka)] == pytest.approx([1] * 8)
    assert {each.variant for each in studied.horizons} == {OWN, FIXED}
    assert {each.resolution for each in studied.horizons} == {SIZE, Resolution(32, 32)}
    shown = studied._repr_html_()
    assert "Where rows look, at 40x56 on objects 1" in shown
    assert "The weights are fresh: figures say what the model is built to do" in shown


def test_charts_keep_to_the_schema_and_json_has_everything(studied):
    charts = study_charts(studied)
    assert {"depth.svg", "maps-40x56.svg", "cka-40x56.svg", "reach.svg", "exponent.svg", "kernel.svg"} == set(charts)
    for chart in charts.values():
        # panels are alike, and validating takes its time
        panels = {name: chart[name][:1] for name in ("concat", "hconcat") if name in chart}
        altair.Chart.from_dict({**chart, **panels}, validate=True)
    document = conforming("study", studied.json_text())
    assert [layer["place"] for layer in document["sizes"][0]["layers"]] == [str(layer.id) for layer in TINY.layers()]
    assert document["sizes"][0]["depths"][0]["areas"]["0.99"] == studied.sizes[0].depths[0].areas[0.99]
    assert document["horizons"][0]["own"][2]["predicted_sigma"] is None


def test_the_terminal_cuts_nothing_off(studied):
    file = io.StringIO()
    studied.print_to(Console(file=file, width=100))
    text = file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_features_that_are_not_finite_end_a_size(tiny):
    model = create_model(tiny)
    torch.nn.init.constant_(model.stages[1].blocks[0].mixer.key.weight, float("nan"))
    found = sola_profile.study_model(model, 32, count=1)
    assert [str(layer.place) for layer in found.sizes[0].layers] == ["1.1"]
    assert any("layer 2.1 gives NaN or infinity on objects 1" in remark for remark in found.remarks)
    assert "layer 2.1 gives NaN" in found._repr_html_()
    assert not found.horizons
    assert any(remark.startswith("No horizon") for remark in found.remarks)


@pytest.fixture
def tiny(monkeypatch):
    """The command knows the tiny backbone, and few sizes."""
    spec = replace(TINY, pattern="L|L|S|D")
    monkeypatch.setitem(presets.PRESETS, "tiny", spec)
    monkeypatch.setattr(instruments, "HORIZON_SIZES", ())
    return spec


def test_the_command_reads_weights_and_images_and_writes_a_page(sola_profile, tiny, tmp_path):
    weights, folder, out = tmp_path / "tiny.safetensors", tmp_path / "images", tmp_path / "out"
    save_weights(create_model(tiny), weights)
    folder.mkdir()
    Image.new("RGB", (50, 30), (200, 40, 40)).save(folder / "red.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(folder / "noise.jpg")
    (folder / "notes.txt").write_text("no image")
    code, printed, err = sola_profile(
        *("study", "--model", "tiny", "--res", "32,48", "--weights", str(weights), "--images", str(folder)),
        *("--out", str(out), "--json", str(tmp_path / "x.json")),
    )
    assert code == 0
    assert "48: matrices of layer 3.1 (S)" in err
    assert "images: noise.jpg, red.png" in " ".join(printed.split())
    page = (out / "README.md").read_text()
    # on one side of the even row of 9 of 64 tokens or the other
    assert "Top 9 (even) |" in page
    assert " % (14.1) |" in page
    assert re.search(r"\| Entropy over images \|.*\n.*\n.*\| 0\.\d{3} ± (< )?0\.\d{3} \|", page)
    assert "The weights are fresh" not in page
    for chart in ("depth.svg", "maps-32.svg", "reach.svg", "exponent.svg"):
        assert f"]({chart})" in page
        assert (out / chart).read_text().startswith("<svg")
    document = conforming("study", (tmp_path / "x.json").read_text())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (document["weights"], document["weights_sha256"]) == ("tiny.safetensors", digest)
    for text in (printed, page):
        assert f"weights of tiny.safetensors (sha256 {digest[:12]}), images:" in " ".join(text.split())


def test_a_matrix_that_is_not_the_operator_s_is_an_error(sola_profile, tiny, monkeypatch):
    rows = WKVMixing.rows
    monkeypatch.setattr(WKVMixing, "rows", lambda self, number, queries: rows(self, number, queries).roll(1, 1))
    code, printed, _ = sola_profile("study", "--model", "tiny", "--res", "32", "--count", "1")
    assert code == 1
    assert "1.1 wkv: differs from the operator by" in printed
    assert "Matrices that differ from the operator by more than 1e-09: layers 1.1, 2.1." in printed


def test_an_interruption_keeps_finished_layers(sola_profile, tiny, tmp_path, monkeypatch):
    study_layer, calls = instruments.study_layer, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return study_layer(*arguments)

    monkeypatch.setattr(instruments, "study_layer", interrupt)
    code, printed, _ = sola_profile("study", "--model", "tiny", "--res", "32", "--out", str(tmp_path / "out"))
    assert code == 130
    assert "2.1 wkv" in printed
    assert "Interrupted" in (tmp_path / "out" / "README.md").read_text()
    (size,) = conforming("study", (tmp_path / "out" / "study.json").read_text())["sizes"]
    assert [layer["place"] for layer in size["layers"]] == ["1.1", "2.1"]


def test_memory_that_runs_out_costs_one_size(tiny, monkeypatch):
    study_layer = materialized.study_layer

    def exhausted(taken, extent, pixels):
        if taken.grid[0] > 8:
            raise torch.OutOfMemoryError
        return study_layer(taken, extent, pixels)

    monkeypatch.setattr(instruments, "study_layer", exhausted)
    found = sola_profile.study_model(tiny, "32,48", count=1)
    assert [len(size.layers) for size in found.sizes] == [4, 0]
    assert any(remark.startswith("48: memory ran out") for remark in found.remarks)


def test_a_mixer_without_a_known_matrix_is_a_line_of_its_own(tiny, monkeypatch):
    class Unknown(DecayAttention):
        pass

    module = type(sys)("unknown_mixer")
    module.Unknown = Unknown
    monkeypatch.setitem(sys.modules, "unknown_mixer", module)
    monkeypatch.setitem(mixers.MIXERS, "unknown", "unknown_mixer:Unknown")
    monkeypatch.setattr(
        materialized, "mixing_of", lambda mixer, *rest: None if isinstance(mixer, Unknown) else mixing_of(mixer, *rest)
    )
    found = sola_profile.study_model(tiny.rewired(mixers={"D": "unknown"}), 32, count=1)
    assert "the matrix of Unknown is not known, which needs a line in" in found._repr_html_()
    assert found.sizes[0].layers[0].matrices
    # figures of features are drawn all the same, those of matrices where there are some
    entropy, *_, area = study_charts(found)["depth.svg"]["concat"]
    assert [len(panel["layer"][1]["data"]["values"]) for panel in (entropy, area)] == [3, 4]


def test_generated_images_are_one_picture_at_every_size():
    samples = Samples(4)
    assert samples.names == ("objects 1", "texture 2", "blobs 3", "objects 4")
    for number in range(3):
        large, small = (samples.load(number, 3, Resolution(side, side)) for side in (128, 64))
        halved = torch.nn.functional.avg_pool2d(large, 2)
        assert (halved - small).abs().mean() < 0.05 * small.std()
        assert torch.equal(small, samples.load(number, 3, Resolution(64, 64)))
    assert samples.load(1, 1, SIZE).shape == (1, 1, 40, 56)


def test_the_page_says_what_the_report_holds():
    """Figures of ``docs/study.md`` against the committed report."""
    docs = Path(__file__).parent.parent / "docs"
    text = " ".join((docs / "study.md").read_text(encoding="utf-8").split())
    document = json.loads((docs / "reports" / "study" / "study.json").read_text(encoding="utf-8"))
    fixed = [each for each in document["horizons"] if each["variant"] == FIXED]
    stacks = [stack for each in fixed for stack in each["repeated"] if stack["sigma_slope"]]
    alike, turns = ([stack for stack in stacks if (len(stack["places"]) == 1) is one] for one in (True, False))
    outside = [s["sigma_slope"] for s in alike if not s["sigma_slope"]["low"] <= 0.5 <= s["sigma_slope"]["high"]]
    assert (len(alike), len(outside)) == (9, 3)
    low, high = (f"{edge(s['value'] for s in outside):.3f}" for edge in (min, max))
    assert f"Of nine intervals six contain ½; the three that don't ({low} to {high})" in text
    low, high = (f"{edge(s['sigma_slope']['value'] for s in turns):.3f}" for edge in (min, max))
    assert f"A stage's layers in turn have b from {low} to {high}" in text
    low, high = (f"{edge(s['reach_slope']['value'] for s in stacks):.3f}" for edge in (min, max))
    assert f"grows more slowly, b = {low} to {high}." in text
    places = [reach["place"] for reach in fixed[0]["own"]]
    near = [f"{100 * each['own'][places.index('3.2')]['measured_99']:.0f}" for each in fixed]
    assert "{} % of the way at 224 pixels, {} % at 512 and {} % at 1024".format(*near) in text
    last = [f"{100 * each['linear'][-1]['measured_99']:.0f}" for each in fixed]
    assert "the last layer has {}, {} and {} %".format(*last) in text
    assert all(reach["measured_99"] > 0.98 for each in fixed for reach in each["own"][places.index("3.3") :])
    worst = max(m["error"] for size in document["sizes"] for layer in size["layers"] for m in layer["matrices"])
    assert 1e-13 < worst < 2.5e-13
    assert "In the example the worst is 2·10⁻¹³." in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--model", "sola_x"), "did you mean 'sola_"),
        (("--model", "timm:resnet18"), "expected a Backbone of sola_vision"),
        (("--res", "224,"), "an empty size"),
        (("--count", "0"), "count: expected at least 1 image, got 0"),
        (("--matrices", "0"), "matrices: expected a whole number of at least 1, got 0"),
        (("--rows", "-1"), "rows: expected a whole number of at least 0, got -1"),
        (("--threads", "0"), "0 is not in the range 1<=x<=4096"),
        (("--threads", "100000"), "100000 is not in the range 1<=x<=4096"),
        (("--images", "nowhere"), "can't read the folder nowhere: No such file"),
        (("--images", "empty"), "no image in empty; expected files with .png"),
        (("--weights", "no.safetensors"), "can't read no.safetensors: No such file"),
        (("--weights", "text.safetensors"), "is no safetensors file"),
    ],
)
def test_bad_use_is_explained(sola_profile, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("not a file of weights")
    code, _, err = sola_profile("study", "--model", "sola_t", *arguments)
    assert code == 2
    assert sentence in " ".join(err.replace("│", " ").split())


def test_an_image_that_can_not_be_read_is_named(sola_profile, tmp_path):
    # neither is an image to look at
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "a.png").mkdir()
    # a header that claims 400 million pixels
    (tmp_path / "large.png").write_bytes(b"P6 20000 20000 255\n")
    with pytest.raises(ValueError, match=r"images: can't read large\.png: Image size"):
        Samples(1, tmp_path).load(0, 3, SIZE)
    (tmp_path / "broken.png").write_text("no image")
    code, _, err = sola_profile("study", "--model", "sola_t", "--images", str(tmp_path))
    assert code == 2
    assert "images: can't read broken.png" in " ".join(err.replace("│", " ").split())
    with pytest.raises(ValueError, match=r"images: can't read broken\.png"):
        Samples(1, tmp_path).load(0, 3, SIZE)
    with pytest.raises(ValueError, match="files have 3 channels, the model takes 1"):
        Samples(1, tmp_path).load(0, 1, SIZE)
