"""The command: bad use, standard output and error, files, interruption, a memory limit."""

import csv
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sola_profile import measuring
from sola_profile.cli import main
from sola_profile.compare import witnesses
from sola_profile.exit_codes import ExitCode
from sola_profile.measure import latency

ROOT = Path(__file__).parent.parent
# of processes that take seconds: only what hangs takes so long, on however busy a machine
TIMEOUT_S = 600
SMALL = ("--model", "sola_t", "--res", "64,96", "--threads", "1")
ONE = ("--model", "sola_t", "--res", "64", "--threads", "1")
ALONE = (*ONE, "--no-twins")
# time enough on any machine; few_runs() ends it early
BUDGET = ("--budget", "1000")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Reports go to the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def few_runs(monkeypatch):
    """End warm-up and sampling by number, so that no result depends on how busy the machine is."""
    monkeypatch.setattr(latency, "MOST_WARMUP_RUNS", 2)
    monkeypatch.setattr(latency, "FEWEST_SAMPLES", 2)
    monkeypatch.setattr(latency, "MOST_SAMPLES", 3)


@pytest.fixture
def run(sola_profile):
    return sola_profile


def process(*arguments, **options):
    """A new process, as a shell would start it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-m", "sola_profile", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--model", "sola_x"), "did you mean 'sola_t'?"),
        (("--model", "timm:resnet180"), "model: timm has no model 'resnet180'; did you mean 'resnet18'?"),
        (("--model", "sola_t", "--res", "abc"), "expected pixels such as 224 or 512x2048, got 'abc'"),
        (("--model", "sola_t", "--res", "512*2048"), "did you mean '512x2048'?"),
        (("--model", "sola_t", "--res", "0"), "a side has 1 to 65,536 pixels, got 0"),
        (("--model", "sola_t", "--batch", "0"), "batch: expected at least 1 image, got 0"),
        (("--model", "sola_t", "--dtype", "float31"), "did you mean 'float32'?"),
        (("--model", "sola_t", "--mode", "tain"), "did you mean 'train'?"),
        (("--model", "sola_t", "--threads", "0"), "threads: expected at least 1, got 0"),
        (("--model", "sola_t", "--budget", "0"), "expected more than 0 seconds"),
        (("--model", "sola_t", "--budget", "nan"), "expected more than 0 seconds, got nan"),
        (("--model", "sola_t", "--budget", "inf"), "expected more than 0 seconds, got inf"),
        (("fit", "--model", "sola_t", "--memory", "1e400"), "expected a memory such as 8GiB"),
        (("fit", "--model", "sola_t", "--memory", "1.2.3"), "expected a memory such as 8GiB"),
        (("--model", "sola_t", "--device", "gpu"), "did you mean 'cuda'?"),
        (("--model", "sola_t", "--device", "cuda:99"), "isn't there"),
        (("--model", "sola_t", "--pattern", "LL|LQ|LLLLLL|LL"), "letter 'Q' names no mixer"),
        (("--model", "sola_t", "--json", "-", "--csv", "-"), "only one of --json and --csv"),
        (
            ("--model", "sola_t", "--no-report", "--csv", "one.txt", "--json", "./one.txt"),
            "--csv would both be written to",
        ),
        (
            ("--model", "sola_t", "--out", "here", "--csv", "here/README.md"),
            "the report and --csv would both be written to",
        ),
        (("--model", "sola_t", "--json", "no/such/folder/x.json"), "can't write to no/such/folder"),
        (("--model", "sola_t", "--json", "."), "is a folder"),
        (("--model", "sola_t", "--out", "x", "--no-report"), "exclude each other"),
        (("--model", "sola_t", "--modl", "x"), "'--model'"),
        (("--res", "224"), "--model"),
        (("profle",), "did you mean 'profile'?"),
    ],
)
def test_bad_use_is_a_sentence_and_exit_code_2(run, arguments, sentence):
    code, out, err = run(*arguments)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err
    assert out == ""


def test_an_unwritable_report_folder_is_found_before_anything_runs(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(*SMALL, "--out", "file/report")
    assert code == 2
    assert "can't write to file/report" in err
    assert "analysing" not in err
    (tmp_path / "loop").symlink_to("loop")
    code, _, err = run(*SMALL, "--json", "loop")
    assert code == 2
    assert "--json: can't write to loop: Too many levels" in err


def test_help_is_there_and_names_the_options_and_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    for word in ("--model", "--res", "--budget", "--strict", "profile", "sola-profile --model sola_t"):
        assert word in out
    assert run("--version")[1].startswith("sola-profile")


def test_help_and_import_do_not_load_torch():
    code = "import sys, sola_vision; from sola_profile import cli; assert 'torch' not in sys.modules, 'torch is loaded'"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_counting_alone_writes_table_and_report(run, tmp_path):
    code, out, err = run(*SMALL, "--no-measure", "--strict")
    assert code == 0
    assert "Work of the forward pass" in out
    assert "agree" in out
    assert "Measured latency" not in out
    assert "analysing sola_t at 64" in err
    folder = tmp_path / "docs" / "reports" / "sola_t"
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "report.html", "result.json", "flops.svg", "shares.svg", "memory.svg", "timeline.svg")
    }
    assert (
        "sola-profile --model sola_t --res 64,96 --threads 1 --no-measure --strict"
        in (folder / "README.md").read_text()
    )
    assert run("profile", *SMALL, "--no-measure", "--no-report")[1] == "\n".join(out.splitlines()[:-1]) + "\n"


def test_measuring_gives_latency_memory_and_shares(run):
    code, out, _ = run(*SMALL, *BUDGET, "--json", "all.json", "--csv", "all.csv", "--out", "here")
    assert code == 0
    assert "Measured latency" in out
    document = json.loads(Path("all.json").read_text())
    assert document == json.loads(Path("here/result.json").read_text())
    assert document["schema_version"] == 2
    assert document["settings"]["threads"] == document["environment"]["threads"] == 1
    assert "hostname" not in json.dumps(document)
    for row in document["models"][0]["rows"]:
        assert row["latency"]["samples_s"]
        assert row["measured_memory"]["step_bytes"] > 0
        assert row["kind_times_s"]
        assert row["missing"] is None
    lines = list(csv.DictReader(io.StringIO(Path("all.csv").read_text())))
    assert [line["role"] for line in lines] == ["model", "model", "linear", "linear", "softmax", "softmax"]
    assert Path("here/latency.svg").exists()


def test_training_and_another_pattern(run):
    code, out, _ = run(*ONE, *BUDGET, "--mode", "train", "--pattern", "LL|LL|SSSSSS|LS", "--json", "all.json")
    assert code == 0
    assert "forward and backward" in out
    document = json.loads(Path("all.json").read_text())
    row = document["models"][0]["rows"][0]
    assert row["training_step_macs"] > 2.9 * row["cost"]["macs"]
    assert row["kind_times_s"] is None
    assert row["latency"]["samples_s"]
    assert Path("docs/reports/sola_t-LL.LL.SSSSSS.LS/README.md").exists()


@pytest.mark.parametrize("name", ["json", "csv"])
def test_a_format_on_standard_output_sends_the_table_to_standard_error(run, name):
    code, out, err = run(*ONE, "--no-measure", "--no-report", f"--{name}", "-")
    assert code == 0
    assert "Work of the forward pass" in err
    if name == "json":
        assert json.loads(out)["models"]
    else:
        assert len(list(csv.DictReader(io.StringIO(out)))) == 3


def test_a_budget_too_small_is_said_in_the_row(run, monkeypatch):
    monkeypatch.setattr(measuring, "FEWEST_RUNS", 10**12)
    code, out, _ = run(*ONE, *BUDGET, "--no-report")
    assert code == 0
    assert "all softmax: not measured (≈" in out
    assert "budget 1000 s" in out


def test_a_large_size_takes_no_time_that_smaller_ones_need(run, monkeypatch):
    """Three runs of the last size would fit into 1,000 s, but not beside samples of the one that is ready."""
    monkeypatch.setattr(measuring.Measuring, "_estimate_s", lambda self, case: 250.0 if self._steps else None)
    monkeypatch.setattr(
        measuring.Measuring, "_owed_s", lambda self, source=None: 400.0 if source == self._model else 0.0
    )
    code, out, _ = run(*SMALL, *BUDGET, "--no-report")
    assert code == 0
    assert " 96: not measured (≈" in out
    assert " 64: not measured" not in out.partition("all linear")[0]


def test_what_was_passed_over_is_tried_again_when_there_is_time(run, monkeypatch):
    estimate, calls = measuring.Measuring._estimate_s, []

    def wrong_at_first(self, case):
        calls.append(case)
        # as if the first run had been disturbed
        return 1e12 if len(calls) <= 5 else estimate(self, case)

    monkeypatch.setattr(measuring.Measuring, "_estimate_s", wrong_at_first)
    code, _, err = run(*SMALL, *BUDGET, "--no-report", "--json", "all.json")
    assert code == 0
    assert err.count("preparing sola_t at 96") == 2
    rows = [row for backbone in json.loads(Path("all.json").read_text())["models"] for row in backbone["rows"]]
    assert all(row["latency"]["samples_s"] and row["missing"] is None for row in rows)


def test_strict_fails_on_a_difference(run, monkeypatch):
    def off_by_one(closed, counts):
        found = agreed(closed, counts)
        part = witnesses.Difference("fvcore", "head", 1, 2)
        return replace(found, differences=(part,))

    agreed = witnesses.agreement
    monkeypatch.setattr("sola_profile.analysis.agreement", off_by_one)
    code, _, err = run(*ALONE, "--no-measure", "--no-report", "--strict")
    assert code == 2
    assert "strict: the witnesses differ at 64 on head" in err
    assert run(*ALONE, "--no-measure", "--no-report")[0] == 0


def test_ctrl_c_keeps_what_is_finished(run, monkeypatch):
    prepare = measuring.Measuring._prepare

    def interrupt_later(self, case):
        if len(self._steps) == 1:
            raise KeyboardInterrupt
        prepare(self, case)

    monkeypatch.setattr(measuring.Measuring, "_prepare", interrupt_later)
    code, out, err = run(*SMALL, *BUDGET, "--json", "all.json")
    assert code == ExitCode.INTERRUPTED
    assert "Interrupted" in out
    assert "interrupted" in err
    document = json.loads(Path("all.json").read_text())
    first, second = document["models"][0]["rows"]
    assert document["interrupted"]
    # the first size was prepared: its memory is known, its latency was not reached
    assert first["measured_memory"]
    assert second["missing"] == {"reason": "not reached"}
    assert "**Interrupted**" in Path("docs/reports/sola_t/README.md").read_text()


def test_a_failure_later_on_loses_no_finished_row(run, monkeypatch):
    def fail(self, cases):
        raise ZeroDivisionError("a mistake in the program")
        yield

    monkeypatch.setattr(measuring.Measuring, "_race", fail)
    monkeypatch.setattr(sys, "argv", ["sola-profile", *ALONE, *BUDGET, "--json", "all.json"])
    with pytest.raises(ZeroDivisionError):
        main()
    assert json.loads(Path("all.json").read_text())["models"][0]["rows"][0]["measured_memory"]


def listen_to_ctrl_c():
    """What a shell starts in the background ignores it, and so would every process that this one starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_real_interrupt_while_measuring(tmp_path):
    # a hundred samples, which are all that it takes, need seconds at this size
    arguments = ("--model", "sola_t", "--res", "224", "--threads", "1", "--no-twins", *BUDGET)
    with process(*arguments, cwd=tmp_path, env={"NO_COLOR": "1"}, preexec_fn=listen_to_ctrl_c) as child:
        try:
            for line in child.stderr:
                # said when the first sample is there
                if line.startswith("measuring"):
                    break
            child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=TIMEOUT_S)
        finally:
            child.kill()
    assert child.returncode == ExitCode.INTERRUPTED
    assert "Measured latency" in out
    assert "\x1b" not in out
    document = json.loads((tmp_path / "docs/reports/sola_t/result.json").read_text())
    assert document["interrupted"]
    assert document["models"][0]["rows"][0]["latency"]["samples_s"]


LIMITED = """
import resource, sys
import psutil, torch, sola_profile.sweep
import sola_profile.measuring as measuring
from sola_profile.exit_codes import ExitCode
from sola_profile.measure import latency
latency.MOST_WARMUP_RUNS, latency.FEWEST_SAMPLES, latency.MOST_SAMPLES = 2, 2, 3
{patch}
limit = psutil.Process().memory_info().vms + {room}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv = ["sola-profile", *"--model sola_t --res 64,1536 --threads 1 --no-twins --budget 1000 --json all.json".split()]
from sola_profile.cli import main
main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address-space limits as Linux keeps them")
@pytest.mark.parametrize(
    ("patch", "tried"), [("", False), ("measuring.available_bytes = lambda device: 1 << 60", True)]
)
def test_a_memory_limit_costs_only_the_rows_that_do_not_fit(tmp_path, patch, tried):
    code = LIMITED.format(patch=patch, room=700 * 2**20)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    small, large = json.loads((tmp_path / "all.json").read_text())["models"][0]["rows"]
    assert small["latency"]["samples_s"]
    assert large["latency"] is None
    assert large["missing"]["reason"] == "out of memory"
    assert (large["missing"]["free_bytes"] is None) == tried
    assert "1536: out of memory" in child.stdout
    # the renderer of the charts may not fit under the limit; the page is there all the same
    assert (tmp_path / "docs/reports/sola_t/README.md").exists()


def test_a_closed_pipe_is_no_traceback(tmp_path):
    child = process(*ALONE, "--no-measure", "--no-report", cwd=tmp_path)
    child.stdout.close()
    with child.stderr:
        assert "Traceback" not in child.stderr.read()
    assert child.wait() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_costs_no_result(run):
    code, out, err = run("--model", "sola_t", "--res", "32", "--no-measure", "--no-report", "--json", "/dev/full")
    assert code == ExitCode.INTERNAL
    assert "GMACs" in out
    assert err.splitlines()[-1] == "not everything was written: No space left on device"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_output_is_no_traceback(tmp_path):
    command = [sys.executable, "-m", "sola_profile", "machine", "--show", "h200"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == ExitCode.INTERNAL
    assert ended.stderr == "not everything was written: No space left on device\n"


def test_an_encoding_without_our_signs_costs_no_result(tmp_path):
    child = process(*ALONE, "--no-measure", "--no-report", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert "Coverage:" in out


def test_a_closed_output_is_no_traceback(tmp_path):
    command = shlex.join(
        [sys.executable, "-m", "sola_profile", *ALONE, "--no-measure", "--no-report", "--json", "all.json"]
    )
    child = subprocess.run(f"{command} >&-", shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert "Traceback" not in child.stderr
    assert json.loads((tmp_path / "all.json").read_text())["models"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--no-measure", "--compile"), "--compile is for the model that is measured, and --no-measure measures none"),
        (("--tolerance", "5%"), "--tolerance needs --baseline to compare with"),
        (("--allow-mismatch",), "--allow-mismatch needs --baseline to compare with"),
        (("--max-regression", "5%"), "--max-regression needs --baseline to compare with"),
    ],
)
def test_options_without_effect_are_refused(sola_profile, options, sentence):
    code, _, err = sola_profile("--model", "sola_t", "--no-report", *options)
    assert code == 2
    assert sentence in " ".join(err.replace("│", " ").split())
