"""What features of newer devices bring: measured with each and without, here without a device, on made-up times."""

from dataclasses import replace

import pytest
import torch
from schemas import conforming

from sola_profile import kernel_cuda
from sola_profile.kernel_case import BOTH, FORWARD, KernelCase, Shape
from sola_profile.kernel_cuda import measure_feature, unmeasured
from sola_profile.kernel_cuda_result import FeatureRow, Timing
from sola_profile.kernel_targets import OWN, FeatureCase, feature_cases
from sola_profile.report.kernel_cuda import cuda_json, cuda_markdown
from sola_vision import ops


@pytest.mark.parametrize(("op", "backend"), [("linear_attention", ""), ("softmax_attention", OWN)])
def test_a_feature_is_off_throughout_the_call_without_it(monkeypatch, op: str, backend: str) -> None:
    """Backward pass included; and on again afterwards."""
    off: list[tuple[str, ...]] = []

    class Clock:
        def time(self, step) -> float:
            step()
            return 2e-3 if off[-1] else 1e-3

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            off.append(ops.cuda_features_off())
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            off.append(ops.cuda_features_off())
            return grad

    def peers(case, ours: str, *, compiled: bool):
        assert (ours, compiled) == (backend, False)
        return {"ours": lambda q, k, v: Seen.apply(getattr(ops, op)(q, k, v))}

    make_inputs = kernel_cuda.make_inputs
    monkeypatch.setattr(kernel_cuda, "make_inputs", lambda case, _: make_inputs(case))
    monkeypatch.setattr(kernel_cuda, "peers", peers)
    row = measure_feature(FeatureCase("pdl", KernelCase(op, Shape.parse("1x2x16x8"), "float32", BOTH, 1)), Clock())
    assert row.gain == pytest.approx(2.0)
    turns = kernel_cuda.WARM_UP + kernel_cuda.ROUNDS
    # timed in turn, then compared, outputs and gradients
    assert off == [(), (), ("pdl",), ("pdl",)] * turns + [("pdl",), ("pdl",), (), ()]
    assert row.timings[1].difference == 0.0
    assert ops.cuda_features_off() == ()


def test_what_is_off_throughout_is_off_on_both_sides(monkeypatch) -> None:
    off: list[tuple[str, ...]] = []

    class Clock:
        def time(self, step) -> float:
            step()
            return 1e-3

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        off.append(ops.cuda_features_off())
        return q * (1 + len(off[-1]))

    make_inputs = kernel_cuda.make_inputs
    monkeypatch.setattr(kernel_cuda, "make_inputs", lambda case, _: make_inputs(case))
    monkeypatch.setattr(kernel_cuda, "peers", lambda *_, **__: {"ours": attend})
    case = FeatureCase("pdl", KernelCase("linear_attention", Shape.parse("1x2x16x8"), "float32", FORWARD, 1))
    with ops.cuda_without("wgmma"):
        row = measure_feature(case, Clock())
        assert ops.cuda_features_off() == ("wgmma",)
    assert set(off) == {("wgmma",), ("wgmma", "pdl")}
    # what computes something else has no gain
    assert row.timings[1].difference == pytest.approx(0.5)
    assert row.gain is None
    page = cuda_markdown(
        replace(unmeasured("NVIDIA H100", (), ()), features=(row,), features_off=("wgmma",)), "command"
    )
    assert "| 1.000 | 1.000 | results differ |" in page
    assert "| features of the device that were switched off | wgmma |" in page


def test_page_and_json_of_features() -> None:
    case = feature_cases()[0]
    rows = (
        FeatureRow(case, (Timing("with", (1e-3,)), Timing("without", (2e-3,), 1e-3))),
        FeatureRow(case, (Timing("with", (1e-3,)), Timing("without", missing="no kernel"))),
    )
    report = replace(unmeasured("NVIDIA H100", (), ()), features=rows)
    page = cuda_markdown(report, "command")
    assert "| clusters | linear_attention 1x6x512x64 bfloat16 | forward | 1.000 | 2.000 | 2.00 × |" in page
    assert "| 1.000 | – | not measured |" in page
    assert "–: no kernel." in page
    assert [row["gain"] for row in conforming("kernels-cuda", cuda_json(report))["features"]] == [2.0, None]
