"""What notebooks hand over: every function reads it alike, and names what it refuses."""

import re

import numpy as np
import pytest
import torch
from study_models import TINY
from torch import nn

import sola_profile
from sola_profile.arguments import check_budget, read_settings, read_size, read_sizes, read_stages, read_texts
from sola_profile.case import Resolution, Settings
from sola_profile.study.placement import Budgets
from sola_profile.study.study_result import Extent

SIZE = "expected pixels such as 224 or 512x2048"


def small():
    return nn.Conv2d(3, 8, 4, stride=4)


CALLS = {
    "profile": ("resolutions", lambda sizes: sola_profile.profile(small, sizes, budget_s=None)),
    "formula": ("resolutions", lambda sizes: sola_profile.formula(small, sizes)),
    "predict": ("resolutions", lambda sizes: sola_profile.predict(small, sizes, machine="h200")),
    "place": ("resolution", lambda size: sola_profile.place(TINY, size)),
    "study_model": ("sizes", lambda sizes: sola_profile.study_model(TINY, sizes, count=1)),
}


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        (224, ["224"]),
        ([224], ["224"]),
        (["33"], ["33"]),
        (("512x64", 33, Resolution(33, 33)), ["33", "512x64"]),
        (Resolution(3, 5), ["3x5"]),
        ((side for side in (64, 32)), ["32", "64"]),
        (np.array([96, 64]), ["64", "96"]),
        (["64,32", 16], ["16", "32", "64"]),
    ],
)
def test_sizes_come_in_many_ways(sizes, found):
    assert [str(size) for size in read_sizes("sizes", sizes)] == found


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "expected at least one size, got []"),
        ("", "an empty size in ''"),
        (0, "a side has 1 to 65,536 pixels, got 0"),
        ([33, "x"], f"{SIZE}, got 'x'"),
        (1.5, "expected pixels such as 224 or '512x2048', or a list of these, got 1.5"),
        ([True], "or a list of these, got True"),
        ([(32, 64)], "or a list of these, got (32, 64)"),
        (None, "or a list of these, got None"),
    ],
)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_size_is_named(call, sizes, message):
    name, function = CALLS[call]
    with pytest.raises(ValueError, match=f"^{name}: .*{re.escape(message)}"):
        function(sizes)


def test_a_placement_takes_one_size():
    assert read_size("resolution", ["33"]) == Resolution(33, 33)
    with pytest.raises(ValueError, match=r"^resolution: expected one size, got 32, 64$"):
        sola_profile.place(TINY, "64,32")


def test_whole_numbers_come_from_numpy_too():
    settings = Settings(batch=np.int64(3), threads=np.int32(1))
    assert settings == Settings(batch=3, threads=1)
    assert {type(number) for number in (settings.batch, settings.threads)} == {int}
    assert read_stages(np.int64(3)) == read_stages([3]) == (3,)
    assert read_stages(iter((4, 2, 2))) == (2, 4)


def test_text_is_one_entry_of_a_list():
    assert read_texts("swaps", "3.1=S", "3.4=S") == ("3.1=S",)
    assert read_texts("swaps", iter(["a", "b"]), "3.4=S") == ("a", "b")
    found = sola_profile.place(TINY, 32, swaps="3.1=S")
    assert [swap.change for swap in found.swaps] == ["3.1=S"]
    with pytest.raises(ValueError, match="did you mean 'sola_t'"):
        sola_profile.profile(small, 32, others="sola_tt", budget_s=None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Settings(batch=2.0), "batch: expected a whole number of at least 1, got 2.0"),
        (lambda: Settings(threads=True), "threads: expected a whole number of at least 1, got True"),
        (lambda: Settings(dtype=torch.float32), "dtype: expected one of float32,"),
        (lambda: Settings(device="tpu"), "device: expected cpu, cuda or cuda:N, got 'tpu'"),
        (lambda: Settings(device=torch.device("cpu")), "device: expected cpu, cuda or cuda:N, got device("),
        (lambda: Settings(compile="no"), "compile: expected True or False, got 'no'"),
        (lambda: Resolution(2.5, 3), "height: expected a whole number, got 2.5"),
        (lambda: read_settings(Settings(device="cuda:99")), "device: 'cuda:99' isn't there"),
        (lambda: sola_profile.profile(small, 32, settings={"batch": 2}), "settings: expected Settings such as"),
        (lambda: sola_profile.place(TINY, 32, settings={"batch": 2}), "settings: expected Settings such as"),
        (lambda: sola_profile.profile(small, 32, others=3), "others: expected a list such as ['sola_t'], got 3"),
        (lambda: sola_profile.place(TINY, 32, swaps=[3]), "swaps: expected a list such as ['3.4=S'], got 3"),
        (
            lambda: sola_profile.place(TINY, 32, swaps=["x"]),
            "swaps: expected stage.layer=letter such as 3.4=S, got 'x'",
        ),
        (lambda: sola_profile.place(TINY, 32, stages="3"), "stages: expected a whole number of at least 1, got '3'"),
        (lambda: sola_profile.place(TINY, 32, stages=[1, 5]), "stages: expected numbers from 1 to 4, got [1, 5]"),
        (lambda: sola_profile.formula(small, 32, dtype="x"), "dtype: expected one of float32,"),
        (lambda: sola_profile.predict(small, 32, dtype="float31"), "dtype: expected one of float32,"),
        (lambda: sola_profile.place(TINY, 32, table="nope.csv"), "table: belongs to score accuracy, got score 'run'"),
    ],
)
def test_what_is_of_another_kind_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


KINDS = "a name, a module, a BackboneSpec or a factory"
BACKBONES = "a name, a BackboneSpec or a Backbone"


@pytest.mark.parametrize(
    ("call", "kinds"),
    [
        (sola_profile.profile, KINDS),
        (sola_profile.formula, KINDS),
        (lambda model, size: sola_profile.predict(model, size, machine="h200"), KINDS),
        (sola_profile.place, BACKBONES),
        (sola_profile.study_model, BACKBONES),
    ],
)
@pytest.mark.parametrize(("model", "came"), [(3, "int"), (None, "NoneType"), ([small()], "list")])
def test_what_is_no_model_is_named(call, kinds, model, came):
    with pytest.raises(TypeError, match=f"^model: expected {kinds}, got {came}$"):
        call(model, 32)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        (Budgets, "softmax", "2", "expected a whole number of at least 0, got '2'"),
        (Budgets, "softmax", 2.5, "expected a whole number of at least 0, got 2.5"),
        (Budgets, "softmax", True, "expected a whole number of at least 0, got True"),
        (Budgets, "macs", "1e9", "expected a number of at least 0, got '1e9'"),
        (Budgets, "memory_bytes", -1, "expected at least 0, got -1"),
        (Budgets, "latency_s", "1", "expected a number of at least 0, got '1'"),
        (Budgets, "latency_s", float("nan"), "expected at least 0, got nan"),
        (Extent, "rows", True, "expected a whole number of at least 0, got True"),
    ],
)
def test_limits_are_numbers(kind, field, value, message):
    assert getattr(kind(**{field: np.int64(2)}), field) == 2
    with pytest.raises(ValueError, match=f"^{field}: {re.escape(message)}$"):
        kind(**{field: value})


@pytest.mark.parametrize("budget_s", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_budget_is_a_time(budget_s):
    message = re.escape(f"budget_s: expected more than 0 seconds, or None to measure nothing, got {budget_s!r}")
    for call in (sola_profile.profile, sola_profile.place):
        with pytest.raises(ValueError, match=f"^{message}$"):
            call("sola_t", 32, budget_s=budget_s)


@pytest.mark.parametrize("budget_s", [None, -1, float("nan"), "1", False])
def test_a_prediction_measures_nothing_in_0_seconds(budget_s):
    check_budget(0.0, nothing=0)
    check_budget(0.5, nothing=0)
    with pytest.raises(ValueError, match=r"^budget_s: expected more than 0 seconds, or 0 to measure nothing, got "):
        sola_profile.predict(small, 32, machine="h200", budget_s=budget_s)
