"""Intervals around predicted times: known answers, how often they hold, and the runs that they stand on."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from schemas import conforming
from torch import nn

from sola_profile import predict
from sola_profile.case import Resolution
from sola_profile.commands import predict as command
from sola_profile.compare.deviations import SHARE, Deviations, factor
from sola_profile.deviation_store import keep, known_of, shipped
from sola_profile.hardware import CALL, FLOPS, PRODUCTS, SECONDS, Machine, constant
from sola_profile.machine_store import find_machine, measured_names, save
from sola_profile.report.time_json import json_text
from sola_profile.report.time_markdown import page_text
from sola_profile.source import FACTORY, ModelSource
from sola_profile.time_result import deviations_of
from sola_profile.time_sweep import TimePlan, TimeSweep

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """No test reads or writes the user's machines."""
    monkeypatch.setenv("SOLA_MACHINES", str(tmp_path / "machines"))
    return tmp_path / "machines"


def run(**ratios):
    return Deviations("made up", "2026-01-01T00:00:00+00:00", "float32", 1, ratios)


def machine(name="made up", measured=True):
    surfaces = {PRODUCTS: constant(FLOPS, 1e9), CALL: constant(SECONDS, 1e-6)}
    return Machine(name, measured, "cpu", "float32", 1, surfaces)


def written(**changed):
    return json.dumps({"schema_version": 1, **asdict(run(a=(1.0,))), **changed})


def test_the_factor_is_a_quantile_of_the_other_models():
    # of nine values the ⌈10 · 0.8⌉-th smallest, whichever way they are off
    known = run(a=(1.1, 1 / 1.2, 1.3), b=(1 / 1.4, 1.5, 1.6), c=(1 / 1.7, 1.8, 1.9))
    assert factor([known], "d") == pytest.approx(1.8)
    assert factor([known], "c") == pytest.approx(1.6)
    assert factor([known, known], "d") == pytest.approx(1.8)


def test_a_model_and_its_twins_say_nothing_of_themselves():
    known = run(**{"a": (9.0,) * 9, "a[all L]": (8.0,) * 9, "b": (1.5,) * 9})
    assert factor([known], "a[LL|LL|LS|S]") == pytest.approx(1.5)
    assert factor([known], "b") == pytest.approx(9.0)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_of_too_few_times_no_interval_follows(count):
    assert factor([run(a=(1.1,) * count)], "b") is None
    assert factor([run(a=(1.1,) * 4)], "b") == pytest.approx(1.1)


def test_the_interval_holds_as_many_times_as_it_says():
    generator = np.random.default_rng(0)
    inside = []
    for _ in range(2000):
        *others, own = np.exp(generator.standard_t(3, size=30)).tolist()
        wide = factor([run(a=others)], "b")
        inside.append(1 / wide <= own <= wide)
    # at most 1 / (n + 1) more; three standard errors
    assert SHARE - 0.027 < np.mean(inside) < SHARE + 1 / 30 + 0.027


def test_a_machine_has_its_own_run_else_those_of_the_package(folder):
    assert known_of(machine()) == shipped()
    kept = run(a=(1.0, 1.1), b=(0.9,))
    path = keep(kept)
    assert path.parent.parent == folder
    (own,) = known_of(machine())
    assert {name: tuple(ratios) for name, ratios in own.ratios.items()} == kept.ratios
    assert known_of(machine("another")) == shipped()
    assert known_of(find_machine("h200", "float32")) == ()
    # which are no machines
    save(machine())
    assert measured_names() == ["made up"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON: Expecting value"),
        ("[]", "expected schema_version 1, got None"),
        ('{"schema_version": 0}', "expected schema_version 1, got 0"),
        ('{"schema_version": 1, "machine": "x"}', "holds no deviations: field 'measured_at' is missing"),
        (written(threads="two"), "holds no deviations: threads: expected a whole number, got 'two'"),
        (written(ratios={"a": [0]}), "holds no deviations: ratios\\['a'\\]: expected numbers above 0, got \\[0\\]"),
        (written(ratios={"a": [float("nan")]}), "expected a number, got nan"),
    ],
)
def test_a_kept_run_that_is_none_is_named(text, message):
    path = keep(run(a=(1.0,)))
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"accuracy: .*made up.json.*{message}"):
        known_of(machine())
    with pytest.raises(ValueError, match="accuracy: "):
        predict(nn.Conv2d(3, 8, 3), "32", machine=machine())


def test_what_the_package_brings_is_what_the_report_found():
    report = conforming("time", (ROOT / "docs/reports/time/time.json").read_text())
    (run_of_report,) = [each for each in shipped() if each.machine == report["machine"]["name"]]
    found = {model["name"]: [1 / (1 + size["error"]) for size in model["sizes"] if size["error"] is not None]
             for model in report["models"]}  # fmt: skip
    assert {name: list(ratios) for name, ratios in run_of_report.ratios.items()} == found
    assert run_of_report.measured_at == report["machine"]["measured_at"]
    assert set(found) == set(command.JUDGED)


def test_a_prediction_shows_its_interval_and_what_that_stands_on():
    keep(run(a=(1.25,) * 9))
    found = predict(nn.Conv2d(3, 8, 3), "32,64", machine=machine())
    (model,) = found.models
    for row in model.rows:
        interval, time_s = model.interval_s(row), row.predicted.total.middle
        assert (interval.low, interval.high) == pytest.approx((time_s / 1.25, time_s * 1.25))
    page = page_text(found, [])
    assert "80 % interval" in page
    assert "divided and multiplied by 1.25: as near lay 80 % of 9 measured times of 1 model on made up." in page
    assert "finds the interval of this machine" not in page
    document = conforming("time", json_text(found))
    assert document["models"][0]["factor"] == pytest.approx(1.25)
    assert document["known"][0]["ratios"] == {"a": [1.25] * 9}
    elsewhere = predict(nn.Conv2d(3, 8, 3), "32", machine=machine("another"))
    assert "predict --accuracy finds the interval of this machine" in page_text(elsewhere, [])
    sheet = predict(nn.Conv2d(3, 8, 3), "32", machine="h200")
    assert sheet.models[0].factor is None
    busy = replace(machine(), load_1min=3.0, fingerprint={"logical_cores": 2})
    crowded = predict(nn.Conv2d(3, 8, 3), "32", machine=busy)
    assert crowded.models[0].factor is None
    assert "No intervals: more threads wanted to run" in page_text(crowded, [])
    assert "interval is" not in page_text(sheet, [])


def test_a_run_that_judges_stands_on_its_other_models(monkeypatch):
    keep(run(a=(100.0,) * 9))
    sources = [ModelSource(name, FACTORY, made=nn.Conv2d(3, 8, 3)) for name in ("one", "two")]
    sizes = [Resolution(side, side) for side in (16, 24, 32, 40, 48)]
    sweep = TimeSweep(TimePlan(sources, sizes, machine(), budget_s=0.2, bounds=False, judged=True))
    list(sweep.run())
    result = sweep.result()
    found = deviations_of(result)
    for model, other in (("one", "two"), ("two", "one")):
        (judged,) = [each for each in result.models if each.name == model]
        assert judged.factor == factor([replace(found, ratios={other: found.ratios[other]})], model)
        for row, ratio in zip(judged.rows, found.ratios[model], strict=True):
            assert row.latency.median_s == pytest.approx(ratio * row.predicted.total.middle)
    assert "of 10 measured medians lie within the interval" in page_text(result, [])


def test_judging_keeps_what_it_found_for_later(sola_profile, monkeypatch, tmp_path, folder):
    monkeypatch.setattr(command, "JUDGED", ("timm:resnet18",))
    monkeypatch.setattr(command, "find_this_or", lambda request: machine())
    arguments = ("predict", "--accuracy", "--res", "32,64", "--budget", "20", "--out", str(tmp_path / "report"))
    code, out, err = sola_profile(*arguments)
    assert code == 0
    kept = folder / "accuracy" / "made up.json"
    assert f"kept for the intervals of later predictions: {kept}" in err
    assert len(json.loads(kept.read_text())["ratios"]["timm:resnet18"]) == 2
    assert "No intervals: too few times were measured of other models." in out
    kept.unlink()
    folder.joinpath("accuracy").rmdir()
    folder.joinpath("accuracy").write_text("")
    code, _, err = sola_profile(*arguments)
    assert code == 0
    assert "not kept for later predictions:" in err
    busy = replace(machine(), load_1min=3.0, fingerprint={"logical_cores": 2})
    monkeypatch.setattr(command, "find_this_or", lambda request: busy)
    assert (
        "not kept for later predictions: the ceilings were measured on a crowded machine" in sola_profile(*arguments)[2]
    )
    arguments = (*arguments, "--model", "timm:resnet18")
    assert "later predictions" not in sola_profile(*arguments)[2]
