"""``sola-profile kernels --device cuda`` without a device: targets, plan, page and JSON from made-up times, refusals."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from schemas import conforming

from sola_profile import kernel_cuda, kernel_cuda_process
from sola_profile.cli import main
from sola_profile.commands import kernels_cuda
from sola_profile.cost.kernels import work
from sola_profile.kernel_case import Shape
from sola_profile.kernel_cuda import race, unmeasured
from sola_profile.kernel_cuda_result import CudaReport, RouteRow, Row, Timing
from sola_profile.kernel_routes import fastest, implied_routes, routes_json
from sola_profile.kernel_targets import (
    AUTO,
    BEST_SDPA,
    BIDIRECTIONAL,
    COPY,
    FLASH,
    MODEL_TARGETS,
    OWN,
    RETENTION,
    RouteCase,
    feature_cases,
    route_cases,
    targets,
)
from sola_profile.report.kernel_cuda import cuda_json, cuda_markdown
from sola_vision import ops
from sola_vision.ops._extension import extension
from sola_vision.ops._routes_file import read_routes

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sola-profile", "kernels", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return call


def test_a_plan_has_every_target_and_no_figure(run, tmp_path) -> None:
    code, out, _ = run("--device", "cuda", "--plan", "NVIDIA H200", "--out", str(tmp_path))
    assert code == 0
    assert "kernels-h200.md" in out
    page = (tmp_path / "kernels-h200.md").read_text()
    document = conforming("kernels-cuda", (tmp_path / "kernels-h200.json").read_text())
    assert len(document["rows"]) == len(targets()) + len(MODEL_TARGETS)
    assert all(row["reached"] is None and row["met"] is None and not row["timings"] for row in document["rows"])
    assert len(document["routes"]) == len(route_cases())
    assert all(row["fastest"] is None and not row["timings"] for row in document["routes"])
    assert len(document["features"]) == len(feature_cases())
    assert all(row["gain"] is None and not row["timings"] for row in document["features"])
    assert "```cpp\n// not measured\n```" in page
    assert not list(tmp_path.glob("*-routes.json"))
    assert "not run on a GPU yet" in page
    assert page.count("not measured") >= 3 * len(document["rows"])


def test_the_committed_plan_is_what_the_command_writes(run, tmp_path) -> None:
    """As long as nothing has been measured on an H200."""
    committed = (ROOT / "docs/reports/kernels-h200.md").read_text()
    if "not run on a GPU yet" not in committed:
        pytest.skip("it has been measured")
    run("--device", "cuda", "--plan", "NVIDIA H200", "--out", str(tmp_path))
    assert (tmp_path / "kernels-h200.md").read_text() == committed
    assert (tmp_path / "kernels-h200.json").read_text() == (ROOT / "docs/reports/kernels-h200.json").read_text()


def test_shares_and_ratios_come_from_medians() -> None:
    linear = next(target for target in targets() if target.against == COPY)
    ours = Timing("ours", (3e-3, 1e-3, 2e-3))
    share = kernel_cuda._reached(linear, {"ours": ours}, 1e12)
    assert share == pytest.approx(work(linear.case).moved_bytes / 2e-3 / 1e12)
    softmax = next(target for target in targets() if target.against == BEST_SDPA and not target.backend)
    timings = {"ours": ours, "SDPA flash": Timing("SDPA flash", (5e-3,)), "SDPA cuDNN": Timing("SDPA cuDNN", (4e-3,))}
    assert kernel_cuda._reached(softmax, timings, 1e12) == pytest.approx(2.0)
    causal = next(target for target in targets() if target.against == RETENTION)
    absent = {"ours": ours, RETENTION: Timing(RETENTION, missing="No module named 'fla'")}
    assert kernel_cuda._reached(causal, absent, 1e12) is None


def test_page_and_json_of_a_measured_row() -> None:
    target = next(target for target in targets() if target.against == COPY)
    timings = (Timing("ours", (2e-3,), 1e-3), Timing("eager", (8e-3,)), Timing("compile", missing="no|compiler"))
    report = CudaReport("NVIDIA H100", "2.11", "13.0", "9.0", 3e12, 8e14, (Row(target, timings, 0.5),))
    page = cuda_markdown(report, "command")
    assert "not run on a GPU yet" not in page
    assert "| 80 % | 50 % ✗ | 2.000 ms | eager 8.000 ms; compile no/compiler |" in page
    assert "3,000 GB/s" in page
    assert json.loads(cuda_json(report))["rows"][0]["met"] is False


def test_routes_take_turns_and_one_that_fails_drops_out() -> None:
    class Clock:
        def too_late(self) -> bool:
            return True

        def time(self, step) -> float:
            step()
            return 1e-3

    calls = []

    def broken() -> None:
        calls.append("broken")
        raise RuntimeError("no kernel image\nmore")

    steps = {"ours": lambda: calls.append("ours"), "broken": broken, "compile": lambda: calls.append("compile")}
    found = race(steps, Clock())
    assert found["compile"].missing == "no time was left to compile it"
    assert len(found["ours"].samples_s) == kernel_cuda.ROUNDS
    assert found["broken"].missing == "no kernel image"
    assert calls[:3] == ["ours", "broken", "ours"]
    assert calls.count("broken") == 1


def test_a_peer_that_wants_mapped_heads_gets_them(monkeypatch) -> None:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # (B, H, N, D), as the peer documents its own
        return q @ (k.mT @ v) / (q * k.sum(2, keepdim=True)).sum(3, keepdim=True)

    name = "flash_bla.ops.linear_attn.fused"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(linear_attention=attend))
    target = next(target for target in targets() if target.case.op == "linear_attention")
    q, k, v = torch.randn(2, 33, 3, 3, 8, dtype=torch.float64).unbind(2)
    found = kernel_cuda.peers(target.case)[BIDIRECTIONAL](q, k, v)
    torch.testing.assert_close(found, ops.linear_attention(q, k, v, eps=0.0))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--device", "cuda"), "sees no CUDA device"),
        (("--device", "gpu"), "expected cpu or cuda, got 'gpu'"),
        (("--device", "cuda", "--quick"), "measures a fixed list"),
        (("--plan", "H200"), "--plan belongs to --device cuda"),
    ],
)
def test_bad_use_is_a_sentence(run, monkeypatch, arguments, sentence) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = run(*arguments)
    assert code != 0
    assert sentence in " ".join((out + err + str(code)).split())


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("../mine", "-mine"),
    ],
)
def test_a_report_is_named_after_its_device(device: str, name: str) -> None:
    assert kernels_cuda.slug(device) == name


def test_the_list_of_softmax_backends_says_what_was_not_measured() -> None:
    found = [entry for entry in extension.backends() if entry[0] == "softmax attention on CUDA"]
    assert [name for _, name, _, _ in found] == ["own kernel", "SDPA flash", "SDPA cuDNN", "SDPA efficient"]
    chosen = [name for _, name, runs, _ in found if runs]
    assert chosen == (["own kernel"] if extension.cuda_devices() else [])
    assert all(reason for _, _, runs, reason in found if not runs)


def test_softmax_is_held_to_two_lists_of_targets() -> None:
    softmax = [target for target in targets() if target.case.op == "softmax_attention"]
    own = [(target.wanted, target.against) for target in softmax if target.backend == OWN]
    whole = [(target.wanted, target.against) for target in softmax if target.backend == AUTO]
    assert own == [(0.9, FLASH), (0.8, FLASH)] * 4
    assert whole == [(0.98, BEST_SDPA), (None, BEST_SDPA)] * 4
    assert all(target.backend == "" for target in targets() if target not in softmax)


def test_ours_is_pinned_where_a_target_says_so(monkeypatch) -> None:
    seen = []

    def attention(q, k, v, *, causal):
        seen.append((ops.current_softmax_backend(), causal))
        return q

    monkeypatch.setattr(kernel_cuda.ops, "softmax_attention", attention)
    target = next(target for target in targets() if target.backend == OWN)
    found = kernel_cuda.peers(target.case, target.backend)
    assert next(iter(found)) == "ours"
    found["ours"](*torch.randn(3, 1, 4, 1, 8))
    assert seen == [("own", False)]
    assert ops.current_softmax_backend() == "auto"


def _row(tokens: int, dtype: str = "bfloat16", *, causal: bool = False, **times_ms: float) -> RouteRow:
    timings = (Timing(name, (time_ms / 1e3,), None if name == OWN else 1e-5) for name, time_ms in times_ms.items())
    return RouteRow(RouteCase(64, dtype, tokens, causal), tuple(timings))


def _report(*rows: RouteRow) -> CudaReport:
    return CudaReport("NVIDIA H200", "2.13.0", "13.0", "9.0", 4e12, 8e14, (), rows)


def test_the_fastest_is_ours_unless_another_gains_more_than_the_target_allows() -> None:
    def name(row: RouteRow) -> str | None:
        best = fastest(row)
        return best.name if best else None

    assert name(_row(64, own=1.0, flash=0.97, cudnn=1.1)) == "flash"
    assert name(_row(64, own=1.0, flash=0.99)) == "own"
    assert name(_row(64, flash=1.0)) is None
    assert name(RouteRow(RouteCase(64, "float32", 64, False))) is None
    row = _row(64, own=1.0, flash=0.9)
    wrong, lost = Timing("cudnn", (1e-4,), 0.5), Timing("efficient", missing="no")
    assert name(RouteRow(row.case, (*row.timings, wrong, lost))) == "flash"
    unknown, not_a_number = Timing("cudnn", (1e-4,)), Timing("efficient", (1e-4,), float("nan"))
    assert name(RouteRow(row.case, (*row.timings, unknown, not_a_number))) == "flash"


def test_the_list_follows_from_the_times() -> None:
    report = _report(
        _row(1024, own=1.0, flash=1.2, cudnn=1.3),
        _row(4096, own=2.0, flash=1.0, cudnn=1.5),
        _row(16384, own=9.0, flash=6.0, cudnn=8.0),
        _row(1024, causal=True, own=1.0, flash=0.5, cudnn=0.8),
        _row(4096, causal=True, own=1.0, flash=1.2),
        _row(1024, "float32", own=1.0, efficient=2.0),
    )
    found = implied_routes(report)
    assert [(route.backend, route.least_queries, route.causal) for route in found] == [
        ("flash", 4096, False),
        ("own", 4096, True),
        ("flash", 1024, True),
    ]
    evidence = (
        "1.50 x ours at 1x16x16384x64, NVIDIA H200, torch 2.13.0; "
        "2.00 x ours at 1x16x4096x64, NVIDIA H200, torch 2.13.0"
    )
    assert found[0].cpp() == (
        f'{{SoftmaxBackend::flash, "{evidence}", 90, 90, {{Dtype::bf16}}, 64, 64, 4096, 4096, false}},'
    )


def test_the_file_of_routes_is_what_the_operator_reads(tmp_path) -> None:
    path = tmp_path / "kernels-h200-routes.json"
    path.write_text(routes_json(_report(_row(4096, own=2.0, cudnn=1.0))))
    (route,) = read_routes(str(path), "file")
    assert repr(route).startswith(
        "cudnn for bfloat16, head dim 64, 4096 queries or more, 4096 keys or more, not causal, compute capability 9.0 ("
    )


def test_page_and_json_of_measured_backends() -> None:
    row = _row(4096, own=2.0, flash=1.0)
    row = RouteRow(row.case, (*row.timings, Timing("cudnn", missing="the backend cudnn can't")))
    page = cuda_markdown(_report(row), "command")
    assert "| 64 | bfloat16 | no | 4,096 | 2.000 | 1.000 | – | not measured | SDPA flash |" in page
    assert "–: the backend cudnn can't." in page
    assert '{SoftmaxBackend::flash, "2.00 x ours' in page
    assert "// ours is the fastest everywhere" in cuda_markdown(_report(_row(64, own=1.0)), "command")
    assert json.loads(cuda_json(_report(row)))["routes"][0]["fastest"] == "flash"


@pytest.fixture
def fake_device(monkeypatch):
    """Times by backend in the place of a clock, and tensors on the CPU."""
    times, running = {OWN: 2e-3, "flash": 1e-3, "cudnn": 3e-3, "efficient": 4e-3, AUTO: 1e-3}, []

    class Clock:
        def __init__(self, slow_until: float) -> None:
            pass

        def too_late(self) -> bool:
            return True

        def time(self, step) -> float:
            running.clear()
            step()
            return times[running[-1]] if running else 5e-3

    def by_backend(backend, q, k, v, *, causal=False):
        running.append(backend)
        return ops.softmax_attention(q, k, v, causal=causal)

    make_inputs = kernel_cuda.make_inputs

    def in_process(report, tasks, slow_until):
        sent = []
        kernel_cuda_process.work_through(SimpleNamespace(send=sent.append), report, tasks, slow_until)
        yield from sent

    monkeypatch.setattr(kernel_cuda_process, "_process", in_process)
    monkeypatch.setattr(kernel_cuda_process, "Clock", Clock)
    monkeypatch.setattr(kernel_cuda, "by_backend", by_backend)
    monkeypatch.setattr(kernel_cuda, "compile_route", lambda route: route.function)
    monkeypatch.setattr(kernel_cuda, "make_inputs", lambda case, _: make_inputs(case))
    for name in ("measure_copy", "measure_matmul"):
        monkeypatch.setattr(kernel_cuda, name, lambda _: 1e12)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    yield
    extension.set_softmax_routes([])


@pytest.mark.usefixtures("fake_device")
def test_the_op_as_a_whole_runs_by_the_list_that_was_measured(monkeypatch, tmp_path) -> None:
    shape = Shape.parse("1x2x16x8")
    small = [replace(t, case=replace(t.case, shape=shape)) for t in targets() if t.backend and t.wanted]
    monkeypatch.setattr("sola_profile.kernel_targets.targets", lambda: (small[0], small[-1]))
    monkeypatch.setattr("sola_profile.kernel_targets.MODEL_TARGETS", ())
    cases = (RouteCase(8, "bfloat16", 16, False), RouteCase(8, "bfloat16", 32, True))
    monkeypatch.setattr("sola_profile.kernel_targets.route_cases", lambda: cases)
    monkeypatch.setattr("sola_profile.kernel_targets.feature_cases", lambda: ())
    kernels_cuda.run(tmp_path)
    document = conforming("kernels-cuda", (tmp_path / "kernels-h200.json").read_text())
    assert [row["fastest"] for row in document["routes"]] == ["flash", "flash"]
    own, whole = document["rows"]
    assert [row["target"]["backend"] for row in (own, whole)] == [OWN, AUTO]
    assert own["reached"] == pytest.approx(2.5)
    assert whole["reached"] == pytest.approx(5.0)
    written = read_routes(str(tmp_path / "kernels-h200-routes.json"), "file")
    assert [repr(route) for route in written] == [repr(route) for route in extension.softmax_routes()[:-1]]
    assert [route.backend for route in written] == ["flash", "flash"]
    late = [timing["name"] for timing in own["timings"] if timing["missing"] == kernel_cuda.NO_TIME]
    assert late == ["compile"]


def test_every_operator_has_a_cuda_kernel_where_nvcc_was_found() -> None:
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sola::")]
    built = bool(ops.build_info()["cuda_architectures"])
    for name in names:
        # without nvcc the forward ops have the one that refuses by name
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
        assert has_kernel == (built or not name.endswith("_backward")), name


def test_unmeasured_reports_hold_all_models() -> None:
    assert len(unmeasured("x", (), MODEL_TARGETS).rows) == len(MODEL_TARGETS)
