"""``sola-profile kernels``: what it refuses, what it measures, what it keeps; ratios and crossovers on made-up times."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from schemas import conforming

from sola_profile import kernel_models
from sola_profile.commands import kernels as command
from sola_profile.compare.crossover import MOST_TOKENS, crossing, next_tokens
from sola_profile.compare.ratios import Ratio, ratio
from sola_profile.compare.shares import shares
from sola_profile.cost.kernels import Work
from sola_profile.exit_codes import ExitCode
from sola_profile.kernel_case import ATTENTION_SHAPES, KERNELS, Choice, KernelCase, Shape, parse_threads
from sola_profile.kernel_measuring import KernelMeasuring, Sampling
from sola_profile.measure import ceilings, contest, latency
from sola_profile.measure.ceilings import Ceilings, Gemm, measure_ceilings
from sola_profile.measure.contest import Contestant, prepare, race, raise_failure
from sola_profile.measure.latency import Sample, WarmUp, summarize
from sola_profile.measure.statistics import Interval
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
        (("--threads", "0"), "expected numbers or all"),
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
    assert "softmax_attention" not in out
    assert err.count("timing") == 1


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
        assert row["shares"]["floor"] > 0
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


class FakeTimer:
    """A clock that only moves while a step runs; ``slow_down``: how much longer steps take after every run."""

    def __init__(self, slow_down=0.0):
        self.clock_s = 0.0
        self.factor = 1.0
        self.slow_down = slow_down

    def time(self, step):
        before = self.clock_s
        step()
        return self.clock_s - before

    def now(self):
        return self.clock_s

    def step(self, duration_s):
        def run():
            self.clock_s += duration_s * self.factor
            self.factor *= 1 + self.slow_down

        return run


def contest_of(timer, rounds, limit_s, **durations_s):
    contestants = {name: prepare(timer.step(time_s), timer, 0.0) for name, time_s in durations_s.items()}
    race(contestants, timer, rounds, limit_s, raise_failure)
    return {name: contestant.latency() for name, contestant in contestants.items()}


def test_a_ratio_by_rounds_survives_a_machine_that_slows_down():
    found = contest_of(FakeTimer(slow_down=0.01), 9, 1e9, ours=1.0, peer=3.0)
    compared = ratio(found["ours"], found["peer"])
    assert len(compared.by_round) == 9
    # the peer comes one run later in every round
    assert compared.value == pytest.approx(3.03)
    assert compared.interval.low == pytest.approx(compared.interval.high)
    # without rounds the drift of the machine would be in the comparison
    assert found["ours"].median_s > 1.05


def test_the_first_round_is_run_whatever_the_limit():
    found = contest_of(FakeTimer(), 9, 4.5, ours=1.0, peer=3.0)
    # in the time after the first round ours has two more turns, and the peer one
    assert (found["ours"].rounds, found["peer"].rounds) == ((0, 1), (0, 1))
    compared = ratio(found["ours"], found["peer"])
    assert compared.value == pytest.approx(3.0)
    assert compared.interval is None
    assert contest_of(FakeTimer(), 9, 0.0, ours=1.0, peer=3.0)["peer"].rounds == (0,)


def test_a_ratio_takes_the_rounds_that_both_have():
    ours = latency_of([(0, 1.0), (1, 2.0), (1, 4.0), (2, 1.0)])
    peer = latency_of([(1, 6.0), (2, 5.0), (3, 100.0)])
    assert ratio(ours, peer).by_round == (2.0, 5.0)
    assert ratio(ours, latency_of([(7, 1.0)])) is None


def latency_of(samples):
    return summarize([Sample("x", number, time_s) for number, time_s in samples], WarmUp((1.0,), settled=True))


def test_short_calls_are_repeated_and_divided(monkeypatch):
    monkeypatch.setattr(contest, "SHORTEST_SAMPLE_S", 1.0)
    timer = FakeTimer()
    contestant = prepare(timer.step(0.3), timer, 10.0)
    assert contestant.calls == 4
    race({"x": contestant}, timer, 2, 1e9, raise_failure)
    assert contestant.latency().median_s == pytest.approx(0.3)
    assert Contestant(timer.step(1.0), 1, WarmUp((1.0,), settled=True)).latency() is None


def test_shares_of_the_ceilings():
    ceiling = Ceilings(1, {"float32": Gemm(matmul=80.0, tiles=100.0)}, copy_bytes_per_s=10.0, exp_per_s=5.0)
    found = shares(Work(macs=100, exponentials=10, moved_bytes=20), 8.0, ceiling, "float32")
    assert (found.flops_per_s, found.gemm) == (25.0, 0.25)
    assert (found.bytes_per_s, found.copy) == (2.5, 0.25)
    # 2 s of products and 2 s of exponentials
    assert found.floor == 0.5


def test_ceilings_are_rates_of_all_threads():
    found = measure_ceilings(2, ["float32", "bfloat16"], 0.001)
    assert set(found.gemm) == {"float32", "bfloat16"}
    assert found.threads == 2
    for gemm in found.gemm.values():
        assert gemm.ceiling == max(gemm.matmul, gemm.tiles) > 0
    assert found.copy_bytes_per_s > 0
    assert found.exp_per_s > 0


def test_the_last_cache_is_read_where_it_is_told(tmp_path, monkeypatch):
    assert ceilings._last_cache_bytes() == 0
    size = tmp_path / "size"
    monkeypatch.setattr(ceilings, "LAST_CACHE", size)
    for text, value in (("32768K\n", 2**25), ("32M", 2**25), ("what", 0)):
        size.write_text(text)
        assert ceilings._last_cache_bytes() == value


def measured(value):
    return Ratio(value, Interval(0.98 * value, 1.02 * value), (value,) * 5)


def search(curve):
    points = {}
    while (tokens := next_tokens(points)) is not None:
        assert len(points) < 20
        points[tokens] = measured(curve(tokens))
    return points


@pytest.mark.parametrize("true", [9, 64, 100, 333, 3000])
def test_the_search_closes_in_on_the_crossing(true):
    points = search(lambda tokens: tokens / true)
    tokens, interval = crossing(points)
    assert tokens == pytest.approx(true, rel=1e-3)
    assert interval.low == pytest.approx(true / 1.02, rel=1e-2)
    assert interval.high == pytest.approx(true / 0.98, rel=1e-2)
    assert len(points) <= 12


def test_no_crossing_is_none():
    for curve in (lambda tokens: 2.0, lambda tokens: 0.5):
        points = search(curve)
        assert crossing(points) is None
        assert max(points) <= MOST_TOKENS


def test_a_crossing_in_noise_stays_near_its_neighbours():
    tokens, interval = crossing({64: measured(0.999), 80: measured(1.001)})
    assert 64 <= tokens <= 80
    # intervals that both hold 1 tell no more than the next sizes would
    assert interval.low >= 64 * (64 / 80) - 1
    assert interval.high <= 80 * (80 / 64) + 1
    assert crossing({64: Ratio(0.5, None, (0.5,)), 80: measured(1.001)})[1] is None


def test_cases_combine_everything_that_fits():
    choice = Choice(
        tuple(KERNELS), (Shape((1, 2, 3, 4)), Shape((1, 2, 3))), ("float32", "bfloat16"), ("forward",), (1, 2)
    )
    found = choice.cases()
    assert len(found) == len(set(found)) == 5 * 2 * 2
    assert str(found[0]) == "softmax_attention 1x2x3x4 float32 forward 1 thread"
