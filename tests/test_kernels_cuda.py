"""``sola-profile kernels --device cuda`` without a device: targets, plan, page and JSON from made-up times, refusals."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sola_profile import kernel_cuda
from sola_profile.cli import main
from sola_profile.commands import kernels_cuda
from sola_profile.cost.kernels import work
from sola_profile.kernel_cuda import CudaReport, Row, Timing, race, unmeasured
from sola_profile.kernel_targets import BEST_SDPA, BIDIRECTIONAL, COPY, MODEL_TARGETS, RETENTION, targets
from sola_profile.report.kernel_cuda import cuda_json, cuda_markdown
from sola_vision import ops

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
    document = json.loads((tmp_path / "kernels-h200.json").read_text())
    assert len(document["rows"]) == len(targets()) + len(MODEL_TARGETS)
    assert all(row["reached"] is None and row["met"] is None and not row["timings"] for row in document["rows"])
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
    softmax = next(target for target in targets() if target.against == BEST_SDPA)
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
        compile_left_s = 0.0

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
    ("device", "name"), [("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100")]
)
def test_a_report_is_named_after_its_device(device: str, name: str) -> None:
    assert kernels_cuda.slug(device) == name


def test_the_list_of_softmax_backends_says_what_was_not_measured() -> None:
    from sola_vision.ops._extension import extension

    found = [entry for entry in extension.backends() if entry[0] == "softmax attention on CUDA"]
    assert next(name for _, name, _, _ in found) == "own kernel"
    chosen = [name for _, name, runs, _ in found if runs]
    assert chosen == (["own kernel"] if extension.cuda_devices() else [])
    assert all(reason for _, _, runs, reason in found if not runs)


def test_every_operator_has_a_cuda_kernel_where_nvcc_was_found() -> None:
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sola::")]
    built = bool(ops.build_info()["cuda_architectures"])
    for name in names:
        # without nvcc the forward ops have the one that refuses by name
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
        assert has_kernel == (built or not name.endswith("_backward")), name


def test_unmeasured_reports_hold_all_models() -> None:
    assert len(unmeasured("x", (), MODEL_TARGETS).rows) == len(MODEL_TARGETS)
