"""``sola-profile kernels``: what it refuses, what it measures, what it keeps; ratios and crossovers on made-up times."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from schemas import conforming

from sola_profile import kernel_models
from sola_profile.commands import kernels as command
from sola_profile.exit_codes import ExitCode
from sola_profile.kernel_case import ATTENTION_SHAPES, KERNELS, Choice, KernelCase, Shape, parse_threads, shapes_of
from sola_profile.kernel_measuring import KernelMeasuring, Sampling
from sola_profile.measure import ceilings, contest, latency
from sola_profile.peers import table
from sola_profile.result import LeftOut, OverBudget

TINY = ("--shape", "1x2x9x4", "--dtype", "float32", "--threads", "1", "--no-compile", "--budget", "1000")


@pytest.fixture(autouse=True)
def small_and_few(tmp_path, monkeypatch):
    """Reports go to the current folder; ceilings, warm-up and sampling end early."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency, "MOST_WARMUP_RUNS", 2)
    monkeypatch.setattr(contest, "SHORTEST_SAMPLE_S", 1e-6)
    monkeypatch.setattr(ceilings, "SIDES", (8,))
    monkeypatch.setattr(ceilings, "LEAST_COPY_BYTES", 2**12)
    monkeypatch.setattr(ceilings, "LAST_CACHE", tmp_path / "nowhere")
    for name in ("FULL", "QUICK"):
        monkeypatch.setattr(command, name, replace(getattr(command, name), rounds=3, ceiling_s=0.001))


@pytest.fixture
def run(sola_profile):
    return partial(sola_profile, "kernels")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--op", "softmx_attention"), "did you mean 'softmax_attention'?"),
        (("--op", "wkv,"), "got ''"),
        (("--shape", "1*6*1024*64"), "did you mean '1x6x1024x64'?"),
        (("--shape", "many"), "expected a shape such as 1x6x4096x64 or 1x16384x96, got 'many'"),
        (("--shape", "6x1024"), "expected BxHxNxD"),
        (("--shape", "0x6x1024x64"), "every size is 1 to"),
        (("--shape", "1x6x1024x257"), "the head dim D is at most 256"),
        (("--op", "wkv", "--shape", "1x6x1024x64"), "none of wkv takes the shape 1x6x1024x64"),
        (("--dtype", "float31"), "did you mean 'float32'?"),
        (("--mode", "backward"), "expected one of forward, forward+backward"),
        (("--threads", "0"), "expected numbers of 1 to 4096 or all"),
        (("--threads", "al"), "did you mean 'all'?"),
        (("--budget", "0"), "expected more than 0 seconds"),
        (("--model", "sola_x"), "did you mean 'sola_t'?"),
        (("--res", "x"), "expected pixels"),
        (("--out", "x", "--no-report"), "exclude each other"),
        (("--json", "no/such/x.json"), "can't write to no/such"),
        (("--quik",), "--quick"),
    ],
)
def test_bad_use_is_a_sentence_and_exit_code_2(run, arguments, sentence):
    code, out, err = run(*arguments)
    assert code == 2
    assert sentence in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""


def test_a_kernel_takes_only_its_own_shapes():
    with pytest.raises(ValueError, match="wkv takes shapes"):
        KernelCase("wkv", ATTENTION_SHAPES[0], "float32", "forward", 1)
    assert parse_threads("all,1,2", 8) == (1, 2, 8)
    assert parse_threads("1,all", 1) == (1,)


def test_a_shape_alone_chooses_the_operators_that_take_it(run):
    code, out, err = run("--shape", "1x6x3", *TINY[2:], "--mode", "forward", "--no-report")
    assert code == 0
    assert "wkv, forward" in out
    assert "shift_mix, forward" in out
    assert "layer_norm, forward" in out
    assert "channel_mix, forward" in out
    assert "softmax_attention" not in out
    assert err.count("timing") == 4


def test_everything_is_measured_and_written(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SOLA_BF16", "float")
    code, out, err = run(*TINY, "--shape", "1x6x3", "--json", "all.json", "--out", "here")
    assert code == 0
    document = conforming("kernels", Path("all.json").read_text())
    assert document == json.loads(Path("here/kernels-cpu.json").read_text())
    assert document["schema_version"] == 1
    assert document["command"].startswith("SOLA_BF16=float sola-profile kernels --")
    assert {(row["op"], row["mode"]) for row in document["rows"]} == {
        (op, mode) for op in KERNELS for mode in ("forward", "forward+backward")
    }
    for row in document["rows"]:
        for route in row["routes"]:
            assert len(set(route["latency"]["rounds"])) == 3, (row["op"], route["name"])
            assert route["error"] < 1e-5
            assert (route["ratio"] is None) == (route["name"] == "ours")
            assert route["missing"] is None
        # no products, no exponentials
        assert (row["shares"]["floor"] > 0) == (row["op"] not in ("shift_mix", "layer_norm"))
    assert {entry["threads"] for entry in document["ceilings"]} == {1}
    assert any(backend["chosen"] for backend in document["backends"])
    assert document["crossovers"] == document["models"] == []
    assert {path.name for path in Path("here").iterdir()} == {f"kernels-cpu.{end}" for end in ("md", "svg", "json")}
    for word in ("SDPA / ours", "of GEMM", "of copy", "instruction set", "chunked", "cumsum"):
        assert word in out
    assert "timing softmax_attention 1x2x9x4 float32 forward 1 thread" in err
    assert str(tmp_path) not in json.dumps(document)


def test_json_on_standard_output_sends_the_tables_to_standard_error(run):
    code, out, err = run(*TINY, "--op", "linear_attention", "--mode", "forward", "--no-report", "--json", "-")
    assert code == 0
    assert conforming("kernels", out)["rows"][0]["op"] == "linear_attention"
    assert "linear_attention, forward" in err


def test_quick_runs_one_shape_per_operator_and_compiles_nothing():
    options = {"ops": (), "shapes": (), "dtypes": (), "modes": (), "threads": None, "models": (), "res": "512"}
    options |= {"crossover": None, "quick": True, "budget": None, "no_compile": False, "out": None, "no_report": False}
    request = command.read_request({**options, "json_file": None})
    assert len({(case.op, case.shape) for case in request.choice.cases()}) == len(KERNELS)
    assert (request.compiled, request.crossover, request.models, request.targets.folder) == (False, False, (), None)
    full = command.read_request({**options, "json_file": None, "quick": False})
    for op in KERNELS:
        assert {case.shape for case in full.choice.cases() if case.op == op} == set(shapes_of(op))
    assert (full.compiled, full.crossover, len(full.models)) == (True, True, 3)
    assert full.targets.folder == Path("docs/reports")


def test_crossovers_and_models_when_asked_for(run, monkeypatch):
    monkeypatch.setattr("sola_profile.compare.crossover.MOST_TOKENS", 128)
    arguments = (*TINY, "--op", "linear_attention", "--mode", "forward", "--crossover", "--model", "sola_t")
    code, out, _ = run(*arguments, "--res", "32", "--json", "all.json", "--no-report")
    assert code == 0
    document = conforming("kernels", Path("all.json").read_text())
    assert [(found["dim"], found["analytical_tokens"]) for found in document["crossovers"]] == [
        (dim, dim) for dim in (32, 64, 128)
    ]
    assert all(found["points"] for found in document["crossovers"])
    model = document["models"][0]
    assert (model["model"], model["resolution"], model["missing"]) == ("sola_t", "32", None)
    assert model["ratio"]["value"] > 0
    assert model["difference"] < 1e-4
    assert "Where linear attention overtakes" in out
    assert "PyTorch / ours" in out


def test_ctrl_c_keeps_what_is_finished(run, monkeypatch):
    measure, cases = KernelMeasuring.measure, []

    def interrupt_later(self, case, allowance_s):
        cases.append(case)
        if len(cases) == 2:
            raise KeyboardInterrupt
        return measure(self, case, allowance_s)

    monkeypatch.setattr(KernelMeasuring, "measure", interrupt_later)
    code, out, err = run(*TINY, "--op", "linear_attention", "--json", "all.json", "--out", "here")
    assert code == ExitCode.INTERRUPTED
    assert "Interrupted" in out
    assert "interrupted" in err
    document = conforming("kernels", Path("all.json").read_text())
    assert document["interrupted"]
    assert len(document["rows"]) == 1
    assert "**Interrupted**" in Path("here/kernels-cpu.md").read_text()


def case_of(op="linear_attention", shape="1x2x9x4"):
    return KernelCase(op, Shape.parse(shape), "float32", "forward", 1)


def with_peer(monkeypatch, **changes):
    """The routes of linear attention with something else about the only peer."""
    ours, eager, *_ = table.ROUTES["linear_attention"]
    monkeypatch.setattr(table, "ROUTES", {"linear_attention": (ours, replace(eager, **changes))})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no such\nkernel"), "failed: RuntimeError: no such"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    ],
)
@pytest.mark.parametrize("good_runs", [0, 4])
def test_a_peer_that_fails_says_so_and_ours_goes_on(monkeypatch, error, reason, good_runs):
    eager, calls = table.ROUTES["linear_attention"][1].function, []

    def fail(*inputs):
        calls.append(None)
        if len(calls) > good_runs:
            raise error
        return eager(*inputs)

    with_peer(monkeypatch, function=fail)
    row = KernelMeasuring(Sampling(rounds=5, compiled=False)).measure(case_of(), 100.0)
    assert row.peers[0].missing == LeftOut(reason)
    assert row.peers[0].latency is row.peers[0].ratio is None
    assert set(row.ours.latency.rounds) == {0, 1, 2, 3, 4}


def test_a_mistake_of_the_program_is_no_missing_row(monkeypatch):
    def mistaken(*inputs):
        raise ZeroDivisionError

    with_peer(monkeypatch, function=mistaken)
    with pytest.raises(ZeroDivisionError):
        KernelMeasuring(Sampling(rounds=1, compiled=False)).measure(case_of(), 100.0)


def test_a_peer_that_takes_too_long_is_not_tried_again(monkeypatch):
    calls = []
    eager = table.ROUTES["linear_attention"][1].function
    with_peer(monkeypatch, function=lambda *inputs: calls.append(None) or eager(*inputs))
    measuring = KernelMeasuring(Sampling(rounds=1, compiled=False))
    measuring.measure(case_of(), 100.0)
    tried = len(calls)
    row = measuring.measure(case_of(shape="1x2x18x4"), 1e-9)
    assert len(calls) == tried
    missing = row.peers[0].missing
    assert isinstance(missing, OverBudget)
    # twice the tokens
    assert missing.estimated_s == pytest.approx(
        2 * measuring._paces[("linear_attention", "eager", "float32", "forward", "1")] * 72
    )
    # ours always has a round
    assert row.ours.latency is not None


def test_compiled_routes_are_timed_apart_from_their_compilation(monkeypatch):
    monkeypatch.setattr("torch.compile", lambda function, **options: function)
    measuring = KernelMeasuring(Sampling(rounds=2, compiled=True))
    row = measuring.measure(case_of(), 100.0)
    assert [route.name for route in row.routes] == ["ours", "eager", "compile"]
    assert row.routes[2].compile_s > 0
    assert row.routes[1].compile_s is None
    assert measuring.compiling_s == row.routes[2].compile_s


def test_errors_are_found_once_for_all_threads(monkeypatch):
    measuring = KernelMeasuring(Sampling(rounds=1, compiled=False))
    first = measuring.measure(case_of(), 100.0)
    monkeypatch.setattr("sola_profile.measure.accuracy.Sampled.error", None)
    second = measuring.measure(replace(case_of(), threads=2), 100.0)
    assert [route.error for route in second.routes] == [route.error for route in first.routes]


def test_a_model_that_fails_or_takes_too_long_says_so(monkeypatch):
    comparison = kernel_models.ModelComparison(rounds=1)
    from sola_profile.case import parse_resolutions, read_spec

    small, large = kernel_models.model_cases([read_spec("sola_t")], parse_resolutions("32,64"), ["float32"], 1)
    assert comparison.compare(small, 100.0).ratio is not None
    missing = comparison.compare(large, 1e-9).missing
    assert isinstance(missing, OverBudget)

    def fail(*_):
        raise RuntimeError("not today")

    monkeypatch.setattr(kernel_models, "build", fail)
    assert comparison.compare(small, 100.0).missing == LeftOut("failed: RuntimeError: not today")


def test_cases_combine_everything_that_fits():
    choice = Choice(
        tuple(KERNELS), (Shape((1, 2, 3, 4)), Shape((1, 2, 3))), ("float32", "bfloat16"), ("forward",), (1, 2)
    )
    found = choice.cases()
    assert len(found) == len(set(found)) == len(KERNELS) * 2 * 2
    assert str(found[0]) == "softmax_attention 1x2x3x4 float32 forward 1 thread"
