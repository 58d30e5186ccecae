"""Old figures against new ones: verdicts, the compare command, baselines, exit codes."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from profiles import sample_profile
from schemas import conforming

from sola_profile import measuring, versions
from sola_profile.commands.gates import parse_share
from sola_profile.compare.gate import Verdict, judge, judge_time
from sola_profile.exit_codes import ExitCode
from sola_profile.measure import latency
from sola_profile.measure.latency import Sample, WarmUp, summarize
from sola_profile.report import render

ROOT = Path(__file__).resolve().parents[1]
ONE = ("--model", "gates_zoo:plain", "--res", "64", "--threads", "1", "--no-report")

ZOO = """
import os, signal, torch


class Deadly(torch.nn.Conv2d):
    def forward(self, image):
        if type(image) is torch.Tensor and image.device.type == "cpu" and image.shape[-1] > 64:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(image)


def plain():
    return torch.nn.Conv2d(3, 4, 1)


def deadly():
    return Deadly(3, 4, 1)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Files go to the current folder, which has models, the same for every test; warm-up and sampling end by number."""
    (tmp_path / "gates_zoo.py").write_text(ZOO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(latency, "MOST_WARMUP_RUNS", 2)
    monkeypatch.setattr(latency, "FEWEST_SAMPLES", 2)
    monkeypatch.setattr(latency, "MOST_SAMPLES", 3)


def write(name, change=None):
    """A result file, changed by a function of its document."""
    document = json.loads(render("json", sample_profile()))
    if change is not None:
        change(document)
    Path(name).write_text(json.dumps(document))
    return name


def scaled_times(factor, **doubts):
    def change(document):
        for row in document["models"][0]["rows"]:
            if row["latency"]:
                row["latency"].update(doubts)
                row["latency"]["samples_s"] = [factor * value for value in row["latency"]["samples_s"]]
                row["latency"]["median_s"] *= factor

    return change


def more_macs(document, number=1):
    document["models"][0]["rows"][1]["cost"]["pieces"][0]["macs"] += number


@pytest.mark.parametrize(
    ("old", "new", "tolerance", "verdict"),
    [
        (100, 100, 0, Verdict.SAME),
        (100, 99, 0, Verdict.LESS),
        (10**12, 10**12 + 1, 0, Verdict.MORE),
        (100, 105, 0.05, Verdict.TOLERATED),
        (100, 106, 0.05, Verdict.MORE),
        # in floats 0.29 · 100 is below 29
        (100, 129, parse_share("29%"), Verdict.TOLERATED),
        (1000, 1007, parse_share("0.7%"), Verdict.TOLERATED),
        (0, 1, 0.5, Verdict.MORE),
        (100, None, 0.5, Verdict.GONE),
        (None, 100, 0, Verdict.NEW),
    ],
)
def test_counted_figures_are_judged_exactly(old, new, tolerance, verdict):
    found = judge("224", "forward pass", "MACs", (old, new), tolerance)
    assert found.verdict is verdict
    assert found.verdict.regression == (verdict in (Verdict.MORE, Verdict.GONE))
    assert judge("224", "forward pass", "MACs", (None, None), 0) is None


def times(factor, spread=0.01, rounds=10):
    """Two samples a round, around ``factor`` seconds."""
    samples = [
        Sample("x", place // 2, factor * (1 + spread * ((place * 7 % 11) / 5 - 1))) for place in range(2 * rounds)
    ]
    return summarize(samples, WarmUp((factor,), settled=True))


@pytest.mark.parametrize(
    ("factor", "limit", "verdict"),
    [
        (1.2, None, Verdict.SLOWER),
        (0.8, None, Verdict.FASTER),
        (1.0, None, Verdict.NO_DIFFERENCE),
        (1.2, 0.05, Verdict.TOO_SLOW),
        (1.02, 0.05, Verdict.WITHIN),
        (1.05, 0.05, Verdict.UNCLEAR),
    ],
)
@pytest.mark.parametrize("interleaved", [False, True])
def test_times_are_judged_by_their_intervals(factor, limit, verdict, interleaved):
    old, new = (times(middle, 0.02 if interleaved else 0.01) for middle in (1.0, factor))
    if interleaved:
        # what slows both in a round must not matter; a little of its own noise is left to each
        drift = [1 + 0.3 * number for number in range(20)]
        old, new = (
            summarize(
                [
                    Sample("x", place // 2, value * drift[place // 2] * (1 + 0.004 * ((place // 2 * k) % 5 - 2)))
                    for place, value in enumerate(side.samples_s)
                ],
                side.warm_up,
            )
            for k, side in ((1, old), (3, new))
        )
    found = judge_time("224", old, new, limit, interleaved=interleaved)
    assert found.verdict is verdict
    assert found.ratio.interval.low <= found.ratio.value <= found.ratio.interval.high


def test_times_that_speak_against_themselves_give_no_verdict_where_one_is_asked():
    wide = times(1.0, spread=0.5)
    assert judge_time("224", wide, times(3.0), 0.05, interleaved=False).verdict is Verdict.UNCLEAR
    assert judge_time("224", None, times(1.0), 0.05, interleaved=False).verdict is Verdict.UNMEASURED
    assert judge_time("224", None, None, 0.05, interleaved=False) is None
    assert judge_time("224", times(1.0, rounds=2), times(1.0, rounds=2), None, interleaved=True).ratio is None


def test_launches_of_the_same_code_seldom_differ():
    generator = np.random.default_rng(0)
    verdicts = []
    for _ in range(200):
        # six launches a side, each with an offset of its own that its runs share
        old, new = (
            summarize(
                [Sample("x", launch, 1 + offset) for launch, offset in enumerate(0.05 * generator.standard_normal(6))],
                WarmUp((1.0,), settled=True),
            )
            for _ in range(2)
        )
        verdicts.append(judge_time("224", old, new, None, interleaved=True).verdict)
    # 3.1 % are expected; 16 and more of 200 have a chance below 1e-3
    assert sum(verdict is not Verdict.NO_DIFFERENCE for verdict in verdicts) < 16


def test_the_same_result_twice_is_fine(sola_profile):
    code, out, _ = sola_profile("compare", write("a.json"), write("b.json"), "--max-regression", "1%")
    assert code == 0
    assert "sola_t: nothing is worse" in out
    assert "not interleaved" in out
    assert "64" in out
    assert "within the limit" in out


def test_one_multiply_accumulate_more_is_a_regression(sola_profile):
    old, new = write("a.json"), write("b.json", more_macs)
    code, out, _ = sola_profile("compare", old, new, "--json", "c.json", "--markdown", "c.md")
    assert code == ExitCode.REGRESSION
    assert "sola_t: 1 figure is worse" in out
    found = conforming("comparison", Path("c.json").read_text())
    worse = [figure for figure in found["figures"] if figure["regression"]]
    assert [(figure["size"], figure["name"], figure["new"] - figure["old"]) for figure in worse] == [
        ("128", "forward pass", 1)
    ]
    assert found["exit_code"] == 3
    page = Path("c.md").read_text()
    assert re.search(r"\| 128 \| forward pass \| MACs \| [\d,]+ \| [\d,]+ \| \+1 \| MORE \|", page)
    assert sola_profile("compare", new, old)[0] == 0
    assert sola_profile("compare", old, new, "--tolerance", "0.1%")[0] == 0


@pytest.mark.parametrize(
    ("change", "options", "code", "sentence"),
    [
        (scaled_times(1.5), (), 0, "slower"),
        (scaled_times(1.5), ("--max-regression", "20%"), ExitCode.REGRESSION, "TOO SLOW"),
        (scaled_times(1.5), ("--max-regression", "0.6"), 0, "within the limit"),
        (
            scaled_times(1.5, doubts=[{"reason": "drift", "value": 0.2}]),
            ("--max-regression", "20%"),
            ExitCode.UNSTABLE,
            "unstable: new",
        ),
    ],
)
def test_time_decides_only_where_it_is_asked_to(sola_profile, change, options, code, sentence):
    found, out, _ = sola_profile("compare", write("a.json"), write("b.json", change), *options)
    assert found == code
    assert sentence in out


def test_runs_that_differ_are_refused_by_name(sola_profile):
    def other(document):
        document["environment"].update(torch="2.99", cpu="another")
        document["settings"]["batch"] = 2

    old, new = write("a.json"), write("b.json", other)
    code, out, err = sola_profile("compare", old, new)
    assert (code, out) == (2, "")
    assert re.search(r"batch: 1 then, 2 now\s+torch: \S+ then, 2.99 now\s+cpu: .* then, another now", err)
    code, out, _ = sola_profile("compare", old, new, "--allow-mismatch")
    assert code == 0
    assert "The runs differ: batch: 1 then, 2 now; torch:" in out

    def uncounted(document):
        other(document)
        document["environment"]["torch"] = json.loads(Path(old).read_text())["environment"]["torch"]
        document["settings"]["batch"] = 1
        for row in document["models"][0]["rows"]:
            row["latency"] = None

    # hardware has no say in what is counted
    assert sola_profile("compare", old, write("b.json", uncounted))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a.json",), "expected two results, OLD.json NEW.json, got 1"),
        (("a.json", "none.json"), "can't read none.json: No such file"),
        (("a.json", "text.json"), "text.json: expected a profile as JSON"),
        (("a.json", "newer.json"), "newer.json: schema_version is 99, expected 2; a newer sola-profile reads it"),
        (("a.json", "older.json"), "older.json: schema_version is 1, expected 2; run the sweep again"),
        (("a.json", "other.json"), "other.json: expected what sola-profile profile --json writes"),
        (("a.json", "broken.json"), "broken.json: not a profile of schema_version 2: field 'rows' is missing"),
        (("a.json", "sizes.json"), "no size is in both"),
        (("a.json", "a.json", "--tolerance", "much"), "expected a share such as 5% or 0.05, got 'much'"),
        (("a.json", "a.json", "--tolerance", "5"), "expected a share such as 5% or 0.05, got '5'; did you mean 5%?"),
        (("a.json", "a.json", "--max-regression", "1.0"), "got '1.0'; did you mean 1.0%?"),
        (("a.json", "untimed.json", "--max-regression", "5%"), "no size has one on both sides"),
        (("a.json", "a.json", "--against-env", "python"), "takes no files"),
        (("--against-env", "python"), "needs --model"),
        (("a.json", "a.json", "--model", "sola_t"), "--model is for --against-env PYTHON"),
        (("a.json", "a.json", "--res", "512"), "--res is for --against-env PYTHON"),
        (("a.json", "a.json", "--launches", "9"), "--launches is for --against-env PYTHON"),
        (
            ("a.json", "empty.json"),
            "empty.json: not a profile of schema_version 2: models: expected the one with the role",
        ),
        (("--against-env", "", "--model", "sola_t"), "can't run"),
        (("--against-env", "python", "--model", "sola_x"), "did you mean 'sola_t'?"),
        (("--against-env", "python", "--model", "sola_t", "--launches", "1"), "expected at least 6, got 1"),
        (("--against-env", "no/such/python", "--model", "sola_t"), "can't run no/such/python"),
    ],
)
def test_bad_use_of_compare_is_a_sentence(sola_profile, arguments, sentence):
    def untimed(document):
        for row in document["models"][0]["rows"]:
            row["latency"] = None

    def other_sizes(document):
        for row in document["models"][0]["rows"]:
            row["height"] += 32

    write("a.json")
    Path("text.json").write_text("no JSON")
    write("newer.json", lambda document: document.update(schema_version=99))
    write("older.json", lambda document: document.update(schema_version=1))
    # other commands have versions of their own
    write("other.json", lambda document: (document.pop("models"), document.update(schema_version=1)))
    write("broken.json", lambda document: document["models"][0].pop("rows"))
    write("empty.json", lambda document: document["models"].clear())
    write("untimed.json", untimed)
    write("sizes.json", other_sizes)
    code, out, err = sola_profile("compare", *arguments)
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())


class FakeWorker:
    """Runs nothing: the new side takes half as long again."""

    def __init__(self, interpreter, model, threads):
        self.loaded, self.time_s = interpreter.name, 0.01 if interpreter.name == "old" else 0.015

    def prepare(self, size, *, sized, shape):
        return self.time_s

    def run(self, size):
        return self.time_s

    def close(self):
        pass


def test_two_versions_take_turns_launch_after_launch(sola_profile, monkeypatch):
    profile = sample_profile()
    monkeypatch.setattr(versions, "Worker", FakeWorker)
    monkeypatch.setattr(versions.Versions, "_counted", lambda self, side: profile)
    command = ("compare", "--against-env", "python", "--model", "sola_t", "--budget", "1000")
    code, out, err = sola_profile(*command, "--max-regression", "20%", "--json", "c.json")
    assert code == ExitCode.REGRESSION
    assert "took turns" in out
    assert err.count("launching") == 6
    found = conforming("comparison", Path("c.json").read_text())
    assert found["interleaved"]
    assert [time["ratio"]["value"] for time in found["times"]] == [pytest.approx(1.5)] * 3

    def fail(self, size):
        raise versions.VersionError("the new side ended: out of memory")

    # what was finished before a side failed is shown
    ran = FakeWorker.run
    calls = iter(range(10**6))
    monkeypatch.setattr(FakeWorker, "run", lambda self, size: ran(self, size) if next(calls) < 60 else fail(self, size))
    code, out, err = sola_profile(*command)
    assert code == ExitCode.INTERNAL
    assert "stopped early: the new side ended" in err
    assert "Measured latency" in out


def test_a_worker_times_the_code_of_its_own_interpreter():
    worker = versions.Worker(versions.Interpreter("new", sys.executable, ROOT), "sola_t", 1)
    try:
        assert Path(worker.loaded).parents[1] == ROOT
        assert worker.prepare("64", sized=False, shape="1x3xHxW") > 0
        assert worker.run("64") > 0
        with pytest.raises(versions.VersionError, match=r"the new side ended: .*KeyError"):
            worker.run("96")
    finally:
        worker.close()
    with pytest.raises(versions.VersionError, match="both interpreters load the same sola_vision"):
        versions._check_different({"old": worker, "new": worker})


def test_a_baseline_gates_a_run_and_is_read_before_it(sola_profile):
    assert sola_profile(*ONE, "--no-measure", "--json", "base.json")[0] == 0
    assert sola_profile(*ONE, "--no-measure", "--baseline", "base.json")[0] == 0
    document = json.loads(Path("base.json").read_text())
    document["models"][0]["rows"][0]["predicted_memory"]["step_bytes"] -= 1
    document["models"][0]["rows"][0]["moved_bytes"] += 1
    Path("base.json").write_text(json.dumps(document))
    code, out, _ = sola_profile(*ONE, "--no-measure", "--baseline", "base.json", "--json", "new.json")
    assert code == ExitCode.REGRESSION
    assert re.search(r"peak memory, predicted +bytes +[\d,]+ +[\d,]+ +\+1 +MORE", out)
    assert re.search(r"bytes moved +bytes +[\d,]+ +[\d,]+ +-1 +less", out)
    assert json.loads(Path("new.json").read_text())["models"]
    for options, sentence in (
        (("--batch", "2", "--no-measure"), "batch: 1 then, 2 now"),
        (("--res", "96", "--no-measure"), "none of these sizes is in base.json, which has 64"),
        (("--max-regression", "5%"), "--max-regression compares times, and base.json has none"),
    ):
        code, _, err = sola_profile(*ONE, *options, "--baseline", "base.json")
        assert code == 2
        assert sentence in err
        assert "analysing" not in err


def test_unstable_timing_and_too_little_memory_have_codes_of_their_own(sola_profile, monkeypatch):
    monkeypatch.setattr(latency, "_doubts", lambda *_: iter([latency.Doubt("few samples", 3)]))
    code, _, err = sola_profile(*ONE, "--budget", "1000", "--require-stable")
    assert code == ExitCode.UNSTABLE
    assert "no stable latency at 64" in err
    monkeypatch.setattr(measuring, "available_bytes", lambda device: 1)
    code, _, err = sola_profile(*ONE, "--budget", "1000", "--require-stable", "--json", "all.json")
    assert code == ExitCode.NOTHING_FITTED
    assert "no size of gates_zoo:plain fitted in memory" in err
    assert json.loads(Path("all.json").read_text())["models"][0]["rows"][0]["missing"]["free_bytes"] == 1
    for option in ("--require-stable", "--isolate"):
        assert sola_profile(*ONE, "--no-measure", option)[0] == ExitCode.USAGE


def test_a_killed_process_costs_only_its_size(sola_profile):
    options = ("--res", "64,96", "--budget", "1000", "--no-report", "--isolate", "--json", "all.json")
    code, out, _ = sola_profile("--model", "gates_zoo:deadly", *options)
    assert code == 0
    small, large = json.loads(Path("all.json").read_text())["models"][0]["rows"]
    assert small["latency"]["samples_s"]
    assert large["missing"] == {"reason": "killed", "exit_code": -9}
    assert large["cost"]["macs"] == 96 * 96 * 12
    assert "96: its process was killed (SIGKILL, as Linux does when memory runs out)" in out
