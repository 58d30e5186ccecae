"""Profiles in Python: made, written, read back, shown."""

import io
import json
from dataclasses import replace

import jsonschema
import pytest
from profiles import sample_profile
from rich.console import Console
from schemas import schema
from torch import nn

import sola_profile
from sola_profile.api import ShownProfile
from sola_profile.case import Resolution, Settings
from sola_profile.compare.growth_class import GrowthClass
from sola_profile.compare.scaling import Estimate
from sola_profile.cost.closed_form import closed_form
from sola_profile.measure.statistics import Interval
from sola_profile.report.json_file import json_text
from sola_profile.report.read_json import read_profile
from sola_profile.result import Killed, LeftOut, NotReached, OutOfMemory
from sola_vision.train import proxy_spec

SCHEMA = schema("profile")


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GELU(), nn.Flatten(2))


@pytest.fixture(scope="module")
def every_kind():
    """A profile with something in every field that may be empty, and with every reason for a missing latency."""
    found = sample_profile()
    reasons = iter([OutOfMemory(10), OutOfMemory(10, 5), NotReached(), LeftOut("because"), Killed(-9)])

    def unmeasured(role, number):
        rows = found.twins[role].rows
        lost = [replace(row, latency=None, missing=next(reasons)) for row in rows[:number]]
        return replace(found.twins[role], rows=(*lost, *rows[number:]), refused={"32": "too small"})

    verdict = GrowthClass({"linear": 0.7, "constant": 0.3}, ("linear", "constant"), 0.01, 512)
    model = replace(found.model, scaling=replace(found.model.scaling, latency_class=verdict))
    endless = replace(found.crossovers[1], time_at=Estimate(5.0, Interval(2.0, float("inf"))), beyond=True)
    contenders = (model, unmeasured("linear", 2), unmeasured("softmax", 3))
    return replace(found, contenders=contenders, crossovers=(found.crossovers[0], endless))


def test_a_profile_reads_back_equal_and_keeps_to_the_schema(every_kind):
    text = json_text(every_kind)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(text), SCHEMA)
    found = read_profile(text, "x.json")
    assert found == every_kind
    assert json_text(found) == text
    assert SCHEMA["properties"]["schema_version"]["const"] == json.loads(text)["schema_version"]
    assert SCHEMA["$id"] == json.loads(text)["$schema"]


def test_the_schema_refuses_what_is_wrong(every_kind):
    for change in (
        lambda document: document.update(schema_version=3),
        lambda document: document["models"][0]["rows"][0].pop("cost"),
        lambda document: document["models"][1]["rows"][0]["missing"].update(reason="bad luck"),
        lambda document: document["models"][0]["complexity"]["macs"].update(a="1.5"),
    ):
        document = json.loads(json_text(every_kind))
        change(document)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, SCHEMA)


def test_a_model_of_the_users_own_is_profiled_and_loaded(tmp_path):
    found = sola_profile.profile(small, "64,128", budget_s=None, settings=Settings(threads=1))
    assert isinstance(found, ShownProfile)
    assert [row.cost.macs for row in found.model.rows] == [side**2 // 16 * 3 * 16 * 8 for side in (64, 128)]
    assert found.model.growth.macs.terms == {(1,): 384}
    path = tmp_path / "found.json"
    path.write_text(found.json_text(), encoding="utf-8")
    jsonschema.validate(json.loads(found.json_text()), SCHEMA)
    loaded = sola_profile.load(path)
    assert loaded.json_text() == found.json_text()
    assert loaded.model.rows[0].cost == found.model.rows[0].cost
    console = Console(file=io.StringIO(), width=100)
    console.print(loaded)
    html = loaded._repr_html_()
    assert html.startswith("<pre")
    for shown in (console.file.getvalue(), html):
        assert "Work of the forward pass" in shown


def test_a_spec_is_profiled_by_its_name_and_closed_form():
    spec = replace(proxy_spec("L", "linear"), name="mine")
    found = sola_profile.profile(spec, 16, budget_s=None, settings=Settings(threads=1), with_twins=False)
    assert (found.model.name, found.model.spec) == ("mine", spec)
    assert found.model.rows[0].cost.macs == closed_form(spec, Resolution(16, 16)).macs
    assert sola_profile.predict(spec, 16, machine="h200").models[0].name == "mine"


def test_a_wrong_argument_is_explained(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'sola_t'"):
        sola_profile.profile("sola_tt")
    with pytest.raises(ValueError, match="the letters H and W once each"):
        sola_profile.profile(small, [Resolution(64, 64)], input_shape="1x3x64x64")
    with pytest.raises(ValueError, match="resolutions: small takes none of them"):
        sola_profile.profile(small, "2", budget_s=None)
    with pytest.raises(FileNotFoundError):
        sola_profile.load(tmp_path / "none.json")
    (tmp_path / "newer.json").write_text('{"schema_version": 7}')
    with pytest.raises(ValueError, match=r"newer.json: schema_version is 7, expected 2"):
        sola_profile.load(tmp_path / "newer.json")
