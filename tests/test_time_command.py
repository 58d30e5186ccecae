"""``sola-profile predict`` and ``machine`` as they are typed, and ``sola_profile.predict``."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from profiles import sample_profile
from rich.console import Console
from schemas import conforming
from torch import nn

import sola_profile as package
from sola_profile import families as names
from sola_profile import machine_measuring
from sola_profile.commands.ceilings import measured
from sola_profile.cost.recording import record_at
from sola_profile.cost.roofline import predict_times
from sola_profile.hardware import BYTES, CALL, ELEMENTS, FLOPS, SECONDS, TRAFFIC, Machine, Span, constant
from sola_profile.machine_store import fingerprint, machine_name, save, stored
from sola_profile.report.tables import latency_table
from sola_profile.source import FACTORY, ModelSource
from sola_profile.time_sweep import TimePlan, TimeSweep

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """No test reads or writes the user's machines."""
    monkeypatch.setenv("SOLA_MACHINES", str(tmp_path / "machines"))
    return tmp_path / "machines"


def test_a_machine_of_a_data_sheet_is_marked_and_the_json_fits_its_schema(sola_profile, tmp_path):
    file = tmp_path / "time.json"
    code, out, err = sola_profile(
        *("predict", "--model", "timm:resnet18", "--res", "64,96", "--machine", "h200"),
        *("--batch", "4", "--json", str(file)),
    )
    assert code == 0
    assert "NOT MEASURED" in out
    assert "Not measured: every figure takes NVIDIA H200" in out
    assert "predicting timm:resnet18 at 64" in err
    document = conforming("time", file.read_text())
    assert document["input"] == "4x3xHxW"
    (resnet,) = document["models"]
    assert {part["kind"] for part in resnet["bounds"]} == {"convolution", "linear map", "no products"}
    # at its peak the machine can't be faster than the products alone
    for size in resnet["sizes"]:
        macs = sum(call["macs"] for call in size["calls"])
        assert size["predicted"]["time_s"] > 2 * macs / 67e12
        whole = sum(call["time_s"] for call in size["calls"]) + size["views_and_modules"]["time_s"]
        assert size["predicted"]["time_s"] == pytest.approx(whole)
        assert sum(size["bound_shares"].values()) == pytest.approx(1)


def test_several_models_and_other_layers(sola_profile, tmp_path):
    file = tmp_path / "time.json"
    models = "sola_t[all S],timm:resnet18"
    command = ("predict", "--model", models, "--res", "64", "--machine", "l4", "--no-bounds", "--json", str(file))
    code, out, _ = sola_profile(*command)
    assert code == 0
    assert "sola_t[all S]  6.38 M parameters" in out
    ours, resnet = json.loads(file.read_text())["models"]
    operators = {call["operator"] for call in ours["sizes"][0]["calls"]}
    assert "sola::softmax_attention" in operators
    assert "sola::wkv" not in operators
    assert resnet["bounds"] == []


def test_what_memory_bounds_takes_time_as_bandwidth_has_it(sola_profile, tmp_path):
    times = {}
    for machine in ("h200", "a100"):
        file = tmp_path / f"{machine}.json"
        sola_profile("predict", "-m", "timm:resnet18", "-r", "512", "--machine", machine, "--json", str(file))
        calls = json.loads(file.read_text())["models"][0]["sizes"][0]["calls"]
        times[machine] = next(call for call in calls if call["operator"].startswith("aten::_native_batch_norm"))
    assert times["a100"]["traffic_s"] / times["h200"]["traffic_s"] == pytest.approx(4.8 / 2.039)
    assert times["h200"]["bound"] == "memory"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "sola_t", "--machine", "h20"), "did you mean 'h200'?"),
        (("--model", "sola_t", "--machine", "l4", "--measure"), "--machine l4 is another"),
        (("--model", "sola_t", "--machine", "apple-a16", "--dtype", "bfloat16"), "has figures for float32, float16"),
        (("--model", "sola_t", "--by", "kinds"), "did you mean 'kind'?"),
        (("--model", "sola_t", "--batch", "0"), "expected at least 1 image, got 0"),
        (("--model", "sola_t", "--threads", "two"), "expected a number from 1 to 4096, got 'two'"),
        (("--machine", "l4"), "--model is missing"),
    ],
)
def test_bad_use_is_explained(sola_profile, arguments, message):
    code, _, err = sola_profile("predict", *arguments)
    assert code == 2
    assert message in " ".join(err.split())


def kept(ratio):
    """Keep this machine with one made-up rate, which is ``ratio`` of what no machine reaches."""
    marks = fingerprint("cpu")
    threads = torch.get_num_threads()
    name = machine_name(marks, "cpu", "float32", threads)
    surfaces = {
        f"{names.ELEMENTWISE}exp": constant(ELEMENTS, ratio * 1e15),
        names.STEM: constant(FLOPS, 1e11),
        TRAFFIC: constant(BYTES, 1e10),
        CALL: constant(SECONDS, 1e-6),
    }
    machine = Machine(name, True, "cpu", "float32", threads, surfaces, marks, "2026-01-01T00:00:00+00:00", 1.0)
    save(machine)
    return machine


def test_kept_ceilings_are_listed_shown_and_doubted(sola_profile, folder):
    code, _, err = sola_profile("machine", "--check")
    assert code == 2
    assert "no ceilings are kept for cpu, float32" in " ".join(err.split())
    machine = kept(1.0)
    code, out, _ = sola_profile("machine", "--list")
    assert code == 0
    assert f"{machine.name}: measured 2026-01-01" in out
    assert str(folder) in out
    code, out, _ = sola_profile("machine", "--show", machine.name)
    assert code == 0
    assert "stem convolution" in out
    code, _, err = sola_profile("machine", "--check")
    assert code == 4
    assert "no longer hold: element-wise exp" in err
    code, _, err = sola_profile("machine", "--threads", "1,al", "--check")
    assert code == 2
    assert "did you mean 'all'" in err


def test_ceilings_without_a_folder_to_keep_them_serve_all_the_same(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOLA_MACHINES", str(tmp_path / "file" / "machines"))
    surfaces = {names.LINEAR: constant(FLOPS, 1e9)}
    monkeypatch.setattr(machine_measuring, "measure_surfaces", lambda place: iter(surfaces.items()))
    assert measured(machine_measuring.Wanted("cpu", "float32", 1)).surfaces == surfaces
    assert f"not kept: can't write to {tmp_path}/file/machines: Not a directory" in capsys.readouterr().err


def test_a_cache_that_may_not_be_read_holds_nothing(monkeypatch):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.stat", refuse)
    assert stored("cpu", "float32", 1) is None


def test_a_profile_has_the_predicted_time_where_ceilings_are_kept(sola_profile, tmp_path):
    machine = kept(1e-6)
    file = tmp_path / "result.json"
    command = ("--model", "timm:resnet18", "--res", "64", "--no-measure", "--no-report", "--json", str(file))
    assert sola_profile(*command)[0] == 0
    (row,) = package.load(str(file)).model.rows
    times = predict_times(record_at(row.case.source, row.case.shape, "float32", row.resolution), machine)
    assert row.predicted_time == times.total
    code, _, err = sola_profile("--model", "sola_t", "--predict", "--mode", "train")
    assert code == 2
    assert "--predict speaks of inference" in " ".join(err.split())


def test_a_profile_predicts_nothing_from_ceilings_that_no_longer_hold(sola_profile, tmp_path):
    """They may have been measured on a busy machine; a profile would show predictions that are off by any factor."""
    kept(1.0)
    file = tmp_path / "result.json"
    command = ("--model", "timm:resnet18", "--res", "32", "--budget", "1", "--no-report", "--json", str(file))
    code, _, err = sola_profile(*command)
    assert code == 0
    (row,) = package.load(str(file)).model.rows
    assert row.predicted_time is None
    said = " ".join(err.split())
    assert "no latency is predicted: the kept ceilings no longer hold: element-wise exp" in said
    assert "--predict measures all anew" in said


def test_the_latency_table_has_a_prediction_and_its_error():
    profile = sample_profile("sola_t", "64,128")
    assert "Predicted" not in latency_table(profile).columns
    (model, *others) = profile.contenders
    half = model.rows[0].latency.median_s / 2
    rows = (replace(model.rows[0], predicted_time=Span(half, half, half)), *model.rows[1:])
    table = latency_table(replace(profile, contenders=(replace(model, rows=rows), *others)))
    assert table.columns[-3:] == ("Predicted", "Error", "")
    assert table.rows[0][-2] == "-50.0 %"
    assert table.rows[1][-3:-1] == ("–", "–")


def test_another_dtype_or_torch_is_another_machine():
    marks = fingerprint("cpu")
    known = machine_name(marks, "cpu", "float32", 2)
    assert machine_name(marks, "cpu", "bfloat16", 2) != known
    assert machine_name({**marks, "torch": "0.1"}, "cpu", "float32", 2) != known


class Unknown(nn.Module):
    """Uses an operator that nobody has a formula for."""

    def forward(self, x):
        return torch.ops.aten.histc(x, 10)


def test_in_python_it_shows_itself_and_what_it_left_out():
    made_up = replace(kept(1e-6), name="made up")
    found = package.predict(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "64", machine=made_up)
    (row,) = found.models[0].rows
    assert row.predicted.total.low <= row.predicted.total.middle <= row.predicted.total.high
    console = Console(file=io.StringIO(), width=120)
    console.print(found)
    html = found._repr_html_()
    for shown in (console.file.getvalue(), html):
        assert "Predicted time by kind at 64" in shown
        assert "stem convolution" not in shown
    sweep = TimeSweep(TimePlan([ModelSource("unknown", FACTORY, made=Unknown())], [row.resolution], made_up))
    list(sweep.run())
    assert sweep.result().models[0].rows[0].predicted.uncounted == ("aten::histc",)


def test_a_model_that_refuses_every_size_is_bad_use(sola_profile):
    code, _, err = sola_profile("predict", "-m", "timm:resnet18", "-r", "64", "--machine", "l4", "--input", "1x1xHxW")
    assert code == 2
    assert "no size could be predicted: timm:resnet18 at 64: " in " ".join(err.split())
