"""The default command on models that aren't ours: what they cost, refuse, fail at, and how they stand beside others."""

import csv
import io
import json
from pathlib import Path

import psutil
import pytest

from sola_profile.cost import work
from sola_profile.errors import first_line
from sola_profile.measure import latency

# a patch embedding, one attention layer that builds its N × N matrix, a head; 8 channels, patch 4
ZOO = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, largest=1 << 30, fails=False):
        super().__init__()
        self.embed, self.qkv, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 10)
        self.token, self.largest, self.fails = nn.Parameter(torch.zeros(8)), largest, fails

    def forward(self, image):
        if image.shape[-1] > self.largest:
            raise ValueError("the image is too large")
        x = self.embed(image).flatten(2).transpose(1, 2) + self.token
        if self.fails and not isinstance(x, torch._subclasses.FakeTensor) and x.device.type == "cpu":
            raise RuntimeError("no kernel for this")
        q, k, v = self.qkv(x).chunk(3, -1)
        x = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return {"out": self.head(x.mean(1)), "size": 3}


def plain():
    return Tiny()


def small():
    return Tiny(largest=64)


def failing():
    return Tiny(fails=True)


def same():
    return nn.Identity()


def broken():
    raise RuntimeError("no luck")


def leaving():
    raise SystemExit(3)


def pooling():
    return nn.AvgPool2d(2)


def unpadded():
    return nn.Conv2d(3, 8, 3, 2)


class Placing(nn.Module):
    # tensors without a device

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)

    def forward(self, image):
        x = self.embed(image)
        order = torch.zeros_like(x).index_add(1, torch.arange(8), x)
        return x + torch.arange(x.shape[-1]) + torch.zeros(1, 8, *x.shape[2:]) + order


class Asking(Placing):
    # and a look at the numbers in one

    def forward(self, image):
        return self.embed(image) * torch.linspace(0, 1, 3).tolist()[1]


def normed():
    spectral, weight = nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm
    return nn.Sequential(spectral(nn.Conv2d(3, 8, 4, 4)), weight(nn.Conv2d(8, 8, 1)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Conv2d(3, 8, 8, 8), nn.LSTM(8, 16, batch_first=True)

    def forward(self, image):
        return self.lstm(self.embed(image).flatten(2).transpose(1, 2))[0]


def scripted():
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 4, 4)))


def lazy():
    return nn.Sequential(nn.LazyConv2d(8, 4, 4))


class Reading(nn.Module):
    def forward(self, image):
        return image * 2 if image.mean() > 0 else image
"""


@pytest.fixture(autouse=True)
def zoo(tmp_path, monkeypatch):
    (tmp_path / "zoo.py").write_text(ZOO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(latency, "MOST_WARMUP_RUNS", 2)
    monkeypatch.setattr(latency, "FEWEST_SAMPLES", 2)
    monkeypatch.setattr(latency, "MOST_SAMPLES", 3)


MEASURED = ("--budget", "1000", "--threads", "1", "--no-report")


def test_a_factory_is_counted_predicted_measured_and_fitted(sola_profile):
    code, out, _ = sola_profile(
        "--model", "zoo:plain", "--res", "64,128,256", *MEASURED, "--json", "all.json", "--strict"
    )
    assert code == 0, out
    # N·3·16·8 + N·8·24 + 2·N·N·8, and a head of 80
    assert "MACs of one image = 16·N² + 576·N + 80, N = H/4 · W/4" in out
    assert "The part in N² costs more MACs than all else from N = 36 tokens (24² px)." in out
    model = json.loads(Path("all.json").read_text())["models"][0]
    assert (model["spec"], model["source"], model["patch"]) == (None, "factory", 4)
    for row, tokens in zip(model["rows"], (256, 1024, 4096), strict=True):
        assert row["tokens_per_stage"] == [tokens]
        assert row["cost"]["macs"] == 16 * tokens**2 + 576 * tokens + 80
        assert row["parameters"]["expected"] == row["parameters"]["counted"] == 8 * 49 + 24 * 9 + 10 * 9 + 8
        assert row["witnesses"]["exact"]
        assert row["latency"]["samples_s"]
        assert row["predicted_memory"]["step_bytes"] == pytest.approx(row["measured_memory"]["step_bytes"], rel=0.02)
    assert model["latency_fit"]["freedom"] == 0


def test_other_models_stand_beside_it_at_the_same_sizes(sola_profile):
    code, out, _ = sola_profile(
        *("--model", "zoo:plain", "--with", "sola_t,zoo:small", "--res", "64,128", "--no-measure"),
        *("--csv", "all.csv", "--out", "report"),
    )
    assert code == 0
    assert "Beside sola_t and zoo:small" in out
    assert "zoo:small doesn't take 128: the image is too large." in out
    lines = list(csv.DictReader(io.StringIO(Path("all.csv").read_text())))
    assert [(line["model"], line["height"]) for line in lines] == [
        *(("zoo:plain", "64"), ("zoo:plain", "128"), ("sola_t", "64"), ("sola_t", "128"), ("zoo:small", "64")),
    ]
    assert lines[0]["macs_attention"] == str(16 * 256**2)
    assert lines[2]["macs_attention"] == ""
    page = Path("report/README.md").read_text()
    assert "zoo:small doesn't take 128" in page
    assert "all linear" not in page


def test_a_preset_can_go_without_its_twins(sola_profile):
    _, out, _ = sola_profile("--model", "sola_t", "--no-twins", "--res", "64", "--no-measure", "--no-report")
    assert "all linear" not in out
    assert "4 agree" in out


def test_a_model_that_fails_when_it_runs_costs_no_other_row(sola_profile):
    code, out, _ = sola_profile("--model", "zoo:failing", "--with", "zoo:plain", "--res", "64", *MEASURED)
    assert code == 0
    assert "64: failed: no kernel for this" in out
    assert "zoo:plain" in out


def test_training_sums_what_has_a_gradient(sola_profile):
    code, out, _ = sola_profile("--model", "zoo:plain", "--mode", "train", "--batch", "2", "--res", "64", *MEASURED)
    assert code == 0
    assert "forward and backward" in out
    assert "MACs of a batch of 2 = 32·N²" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "zoo:small", "--res", "128"), "zoo:small takes none of these sizes of 1x3xHxW: 128: the image is"),
        (("--model", "zoo:plain", "--input", "3x3xHxW"), "expected 1 or --batch 1 first, got '3x3xHxW'"),
        (("--model", "zoo:plain", "--pattern", "LL|LL|LL|LL"), "--pattern changes the layers of a preset"),
        (("--model", "sola_t", "--with", "sola_x"), "did you mean 'sola_t'?"),
        (("--model", "sola_t[LL|LL]"), "2 stages where the backbone has 4"),
        (("--model", "zoo:Tiny.forward", "--res", "64"), "can't be built"),
        (("--model", "zoo:leaving", "--res", "64"), "zoo:leaving can't be built: it ended the process with status 3"),
        (("--model", "sola_t", "--input", "1x4xHxW"), "sola_t takes 1x3xHxW, got 1x4xHxW"),
        (("--model", "sola_t", "--limit", "nan"), "expected a finite number above 0, got nan"),
    ],
)
def test_bad_use_names_the_mistake(sola_profile, arguments, message):
    code, _, err = sola_profile(*arguments, "--no-measure", "--no-report")
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_model_without_products_is_a_model(sola_profile, tmp_path):
    measured = ("--budget", "1000", "--threads", "1", "--with", "zoo:plain", "--out", "report")
    code, out, _ = sola_profile("--model", "zoo:pooling", "--res", "64,128", *measured)
    assert code == 0
    assert "MACs of one image = 0" in out
    assert "Local slope of latency" in out
    assert "Local slope of MACs" not in out
    assert (tmp_path / "report" / "report.html").exists()


def test_a_model_without_operators_is_a_model(sola_profile):
    code, out, _ = sola_profile("--model", "zoo:same", "--res", "64", "--budget", "1", "--threads", "1", "--no-report")
    assert code == 0
    assert "MACs of one image = 0" in out
    code, out, _ = sola_profile("formula", "--model", "zoo:same", "--res", "64", "--measure-memory")
    assert code == 0
    assert "refuses" not in out
    assert "-100" not in out


@pytest.mark.parametrize(
    ("arguments", "name", "message"),
    [
        (("fit", "--memory", "1GiB"), "broken", "of these sizes of 1x3xHxW: 64: no luck; other sizes: no luck"),
        (("trace", "--out", "trace.json"), "broken", "zoo:broken doesn't run at 64: RuntimeError: no luck"),
        (
            ("trace", "--out", "trace.json"),
            "failing",
            "zoo:failing doesn't run at 64: RuntimeError: no kernel for this",
        ),
        (("predict", "--machine", "h200", "--no-report"), "broken", "zoo:broken at 64: "),
    ],
)
def test_a_model_that_fails_is_refused_in_a_line(sola_profile, arguments, name, message):
    command, *rest = arguments
    code, _, err = sola_profile(command, "--model", f"zoo:{name}", "--res", "64", *rest)
    assert code == 2
    assert message in " ".join(err.split())


def test_a_model_that_reads_values_is_refused_in_words(sola_profile):
    code, _, err = sola_profile("--model", "zoo:Reading", "--res", "64", "--no-measure", "--no-report")
    assert code == 2
    assert "64: what it computes depends on values in tensors (aten._local_scalar_dense.default)" in " ".join(
        err.split()
    )


def test_positions_are_those_of_the_first_convolution_at_every_size(sola_profile):
    code, out, _ = sola_profile(
        *("--model", "zoo:plain", "--res", "67,130x65,128", "--batch", "3", "--no-measure", "--no-report"),
        *("--json", "all.json"),
    )
    assert code == 0, out
    model = json.loads(Path("all.json").read_text())["models"][0]
    found = {(row["height"], row["width"]): row["tokens_per_stage"] for row in model["rows"]}
    # what a patch of 4 leaves over is cut off
    assert found == {(67, 67): [16 * 16], (130, 65): [32 * 16], (128, 128): [32 * 32]}
    assert model["patch"] == 4


def test_positions_are_pixels_where_no_whole_number_of_them_makes_one(sola_profile):
    code, out, _ = sola_profile("--model", "zoo:unpadded", "--res", "64,65", "--no-measure", "--no-report")
    assert code == 0, out
    assert "4,096" in out
    assert "4,225" in out


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("name", ["Placing", "Asking", "normed"])
def test_models_that_make_their_own_tensors_are_profiled(sola_profile, name, mode):
    arguments = ("--model", f"zoo:{name}", "--res", "64,96x128", "--mode", mode, "--no-measure", "--no-report")
    code, out, err = sola_profile(*arguments, "--strict", "--json", "all.json")
    assert code == 0, err
    rows = json.loads(Path("all.json").read_text())["models"][0]["rows"]
    assert [len(row["witnesses"]["macs"]) for row in rows] == [3, 3]
    assert "gave no count" not in out


@pytest.mark.filterwarnings("ignore:.torch.jit.script", "ignore::UserWarning")
@pytest.mark.parametrize("command", [("--no-measure", "--no-report"), ("formula",)])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scripted", "zoo:scripted is a torch.jit.ScriptModule, which can't be followed"),
        (
            "lazy",
            "zoo:lazy has weights without a shape (0.weight, 0.bias); expected one whose lazy modules have run once",
        ),
    ],
)
def test_modules_that_cannot_be_followed_are_refused_by_name(sola_profile, command, name, message):
    code, _, err = sola_profile(*command, "--model", f"zoo:{name}", "--res", "64")
    assert code == 2
    assert message in " ".join(err.split())


def test_formula_gives_the_reasons_why_no_size_is_taken(sola_profile):
    code, out, err = sola_profile("formula", "--model", "zoo:small", "--res", "128,160", "--json", "all.json")
    assert code == 2
    assert "takes none of these sizes of 1x3xHxW: 128: the image is too large; 160: the image is too large" in err
    assert "Coverage" not in out
    assert json.loads(Path("all.json").read_text())["coverage"]["share"] is None


@pytest.mark.parametrize("command", [("--no-measure", "--no-report"), ("fit", "--memory", "1GiB")])
def test_checkpointing_without_a_switch_is_no_matter_of_sizes(sola_profile, command):
    arguments = ("--model", "zoo:plain", "--res", "64", "--mode", "train", "--checkpointing")
    code, _, err = sola_profile(*command, *arguments)
    assert code == 2
    assert "checkpointing: zoo:plain has no method set_grad_checkpointing" in err
    assert "takes none of these sizes" not in err


def test_an_error_is_quoted_up_to_where_its_bracket_closes():
    assert (
        first_line(ValueError("output 1 (3\n[ Tensor ]) of the region\nmore"))
        == "output 1 (3 [ Tensor ]) of the region"
    )
    assert first_line(ValueError("a smile :-(\nand\nno\nend\nto\nit")) == "a smile :-("
    assert first_line(ValueError("one\ntwo")) == "one"


def test_a_busy_machine_is_named_where_times_were_measured(sola_profile, monkeypatch):
    monkeypatch.setattr(psutil, "getloadavg", lambda: (3.24, 0.0, 0.0))
    arguments = ("--model", "zoo:pooling", "--res", "64")
    _, out, _ = sola_profile(*arguments, *MEASURED)
    assert "The load was 3.2 before, so measured times may be too long." in out
    _, out, _ = sola_profile(*arguments, "--no-measure", "--no-report")
    assert "The load was" not in out
    monkeypatch.setattr(psutil, "getloadavg", lambda: (0.5, 9.0, 9.0))
    _, out, _ = sola_profile(*arguments, *MEASURED)
    assert "The load was" not in out


def test_formulas_that_lack_an_operator_are_said_to_be_blind(sola_profile, monkeypatch):
    monkeypatch.delitem(work.PRODUCTS, "aten::mkldnn_rnn_layer")
    _, out, _ = sola_profile("--model", "zoo:Recurrent", "--res", "64", "--no-measure", "--no-report")
    assert "formulas blind" in out
    assert "formulas are blind to aten::mkldnn_rnn_layer." in out
    _, out, _ = sola_profile("formula", "--model", "zoo:Recurrent", "--res", "64")
    assert "formulas blind" in out
    assert "formulas are blind to mkldnn_rnn_layer" in out
    assert "one formula is wrong" not in out
