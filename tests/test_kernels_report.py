"""The reports of ``sola-profile kernels`` say what was measured, and say what was not."""

import io
import json
import re
from dataclasses import replace
from functools import cache
from xml.etree import ElementTree

import altair
import pytest
from rich.console import Console
from schemas import conforming

from sola_profile.compare.ratios import Ratio, ratio
from sola_profile.cost.kernels import work
from sola_profile.kernel_case import ATTENTION_SHAPES, DEFAULT_DTYPES, KERNEL_MODES, TOKEN_SHAPES, Choice
from sola_profile.kernel_result import Backend, Crossover, KernelReport, KernelRow, ModelRow, RouteResult
from sola_profile.machine import environment
from sola_profile.measure.ceilings import Ceilings, Gemm
from sola_profile.measure.latency import Sample, WarmUp, summarize
from sola_profile.measure.statistics import Interval
from sola_profile.peers.table import OURS, ROUTES
from sola_profile.report import kernel_markdown, svg
from sola_profile.report.kernel_chart import PEER_STYLES, ratio_chart
from sola_profile.report.kernel_json import SCHEMA_VERSION, kernel_json_text
from sola_profile.report.kernel_markdown import write_kernel_page
from sola_profile.report.kernel_tables import (
    busy_sentence,
    ceiling_table,
    crossover_table,
    groups,
    model_remarks,
    model_table,
    remarks,
    share_table,
    speed_table,
    summary_table,
)
from sola_profile.report.kernel_terminal import print_kernels
from sola_profile.result import LeftOut, OverBudget

OPS = ("softmax_attention", "linear_attention", "wkv")
PEERS = {"softmax_attention": ("SDPA", "eager"), "linear_attention": ("eager", "compile"), "wkv": ("cumsum", "loop")}
SHAPES = (ATTENTION_SHAPES[0], ATTENTION_SHAPES[3], ATTENTION_SHAPES[5], *TOKEN_SHAPES[:2])
RATIOS = (2.0, 5.0)


def latency(time_s):
    samples = [Sample("x", number, time_s * (1 + 0.001 * number)) for number in range(12)]
    return summarize(samples, WarmUp((time_s,), settled=True))


def row_of(case):
    cost = work(case)
    ours_s = 1e-4 + cost.flops / 1e11 + cost.moved_bytes / 1e10
    ours = RouteResult("ours", "compiled", 1, latency(ours_s), error=2e-6)
    peers = []
    for name, times in zip(PEERS[case.op], RATIOS, strict=True):
        found = latency(times * ours_s)
        peers.append(RouteResult(name, f"PyTorch's {name}", 1, found, ratio(ours.latency, found), times * 1e-6))
    if "eager" in PEERS[case.op] and case.shape.tokens == 16384:
        peers[PEERS[case.op].index("eager")] = RouteResult("eager", "PyTorch's", missing=LeftOut("too large"))
    return KernelRow(case, cost, (ours, *peers))


def report_of(**changes):
    return replace(whole_report(), **changes)


@cache
def whole_report():
    choice = Choice(OPS, SHAPES, DEFAULT_DTYPES, KERNEL_MODES, (1, 2))
    gemm = {dtype: Gemm(9e10, 1e11) for dtype in DEFAULT_DTYPES}
    point = Ratio(1.0, Interval(0.9, 1.1), (1.0, 1.0, 1.0))
    found = {"dim": 64, "heads": 6, "dtype": "float32", "mode": "forward", "threads": 2, "analytical_tokens": 64.0}
    return KernelReport(
        command="sola-profile kernels",
        started="2026-01-01T00:00:00+00:00",
        environment=replace(environment(), load_1min=0.0),
        backends=(Backend("instruction set", "avx512", True, ""), Backend("instruction set", "avx2", False, "slower")),
        ceilings={threads: Ceilings(threads, gemm, 2e10, 5e9) for threads in (1, 2)},
        budget_s=100.0,
        rows=tuple(map(row_of, choice.cases())),
        crossovers=(
            Crossover(**found, tokens=70.4, interval=Interval(65.2, 75.7), points=((64, point),)),
            Crossover(**{**found, "dim": 128}, tokens=None, interval=None, points=()),
        ),
        models=(
            ModelRow("sola_t", "512", "float32", 2, latency(0.1), latency(0.2), point, 1e-6),
            ModelRow("sola_b", "1024", "float32", 2, missing=OverBudget(30.0, 20.0)),
        ),
        interrupted=False,
    )


def rows_of(report, op, mode):
    return next(rows for name, found, rows in groups(report) if (name, found) == (op, mode))


def cells(table, row):
    return dict(zip(table.columns, table.rows[row], strict=True))


def test_ratios_are_those_of_the_rows():
    report = report_of()
    rows = rows_of(report, "softmax_attention", "forward")
    table = speed_table("softmax_attention", "forward", rows)
    first = cells(table, 0)
    assert (first["Shape"], first["dtype"], first["Thr."]) == ("8x6x196x64", "float32", "1")
    assert first["SDPA / ours"] == "2.00 ± 0.00"
    few = Ratio(3.0, None, (3.0,))
    slow = replace(rows[0], routes=(rows[0].ours, replace(rows[0].peers[0], ratio=few)))
    assert cells(speed_table("softmax_attention", "forward", [slow]), 0)["SDPA / ours"] == "≈ 3.00"


def test_a_peer_that_never_ran_has_no_column_but_a_remark():
    rows = [row for row in rows_of(report_of(), "softmax_attention", "forward") if row.case.shape.tokens == 16384]
    assert "eager / ours" not in speed_table("softmax_attention", "forward", rows).columns
    assert list(remarks(rows)) == ["1x3x16384x32 float32 eager: too large", "1x3x16384x32 bfloat16 eager: too large"]


def test_shares_errors_and_the_cost_of_the_backward():
    report = report_of()
    rows = rows_of(report, "softmax_attention", "forward+backward")
    first = cells(share_table(report, "softmax_attention", "forward+backward", rows), 0)
    found = report.shares(rows[0])
    assert float(first["GFLOP/s"]) == pytest.approx(found.flops_per_s / 1e9, rel=5e-3)
    assert first["of GEMM"] == f"{100 * found.flops_per_s / 1e11:.0f} %"
    assert (first["Error"], first["Peers'"]) == ("2.0e-06", "2.0e-06")
    forward = rows_of(report, "softmax_attention", "forward")
    times = rows[0].ours.latency.median_s / forward[0].ours.latency.median_s
    assert first["/ fwd"] == f"{times:.2f}"
    assert "/ fwd" not in share_table(report, "softmax_attention", "forward", forward).columns
    assert cells(share_table(report, "wkv", "forward", rows_of(report, "wkv", "forward")), 0)["GFLOP/s"] == "–"


def test_the_summary_holds_median_and_range():
    report = report_of()
    table = summary_table(report)
    assert len(table.rows) == 3 * 2 * 2
    assert cells(table, 0) == {
        "Operator": "softmax_attention",
        "Mode": "forward",
        "Peer": "SDPA",
        "float32": "2.00 (2.00 – 2.00)",
        "bfloat16": "2.00 (2.00 – 2.00)",
    }
    assert cells(summary_table(replace(report, rows=report.rows[:1])), 0)["float32"] == "2.00"


def test_ceilings_crossovers_and_models():
    report = report_of()
    assert ("1", "GEMM float32, our tiles in cache", "100 GFLOP/s") in ceiling_table(report).rows
    measured, none = (cells(crossover_table(report), number) for number in (0, 1))
    assert (measured["N measured"], measured["95 % interval"], measured["N by FLOPs"]) == ("70", "65 – 76", "64")
    assert (none["N measured"], none["95 % interval"]) == ("–", "–")
    timed, missing = (cells(model_table(report), number) for number in (0, 1))
    assert (timed["PyTorch / ours"], missing["PyTorch / ours"]) == ("1.00 ± 0.10", "–")
    assert list(model_remarks(report)) == ["sola_b at 1024 float32: not measured (≈ 30.0 s a run, budget 20 s)"]


def test_a_busy_machine_is_said():
    assert busy_sentence(report_of()) == ""
    busy = report_of(environment=replace(report_of().environment, load_1min=3.2))
    assert "Load before the run 3.2" in busy_sentence(busy)
    assert "**Load before the run 3.2" in kernel_markdown.page_text(busy, "", [])


@pytest.mark.parametrize("width", [100, 120])
def test_the_terminal_cuts_nothing_off(width):
    console = Console(file=io.StringIO(), width=width)
    print_kernels(report_of(interrupted=True), console)
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "Interrupted" in text
    assert "not measured (≈ 30.0 s a run" in text
    assert "no: slower" in text


def test_the_page_names_its_picture_and_they_exist(tmp_path):
    with svg.Renderer() as renderer:
        assert write_kernel_page(report_of(), tmp_path, "kernels-cpu", renderer, ["kernels-cpu.json"]) == ""
    page = (tmp_path / "kernels-cpu.md").read_text(encoding="utf-8")
    assert re.findall(r"!\[[^]]*\]\(([^)]+)\)", page) == ["kernels-cpu.svg"]
    picture = (tmp_path / "kernels-cpu.svg").read_text(encoding="utf-8")
    words = " ".join(ElementTree.fromstring(picture).itertext())
    for word in ("SDPA", "cumsum", "8x6x196x64", "softmax_attention, forward+backward", "2 threads"):
        assert word in words
    for word in ("## Summary", "## wkv", "### forward+backward", "## Crossover", "## Whole models", "- *SDPA*:"):
        assert word in page
    assert "\n\n\n" not in page
    assert "[`kernels-cpu.json`](kernels-cpu.json)" in page
    for line in page.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3


def test_a_renderer_that_fails_costs_only_the_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(svg, "_PROGRAM", "import os; os.abort()")
    (tmp_path / "kernels-cpu.svg").write_text("of an earlier run")
    with svg.Renderer() as renderer:
        assert "exit status" in write_kernel_page(report_of(), tmp_path, "kernels-cpu", renderer)
    assert [path.name for path in tmp_path.iterdir()] == ["kernels-cpu.md"]
    assert "![" not in (tmp_path / "kernels-cpu.md").read_text(encoding="utf-8")


def test_a_page_of_one_case_leaves_out_what_is_not_there():
    page = kernel_markdown.page_text(report_of(rows=report_of().rows[:1], crossovers=(), models=()), "", [])
    for word in ("## Crossover", "## Whole models", "![", "Raw samples"):
        assert word not in page


def test_the_picture_keeps_to_the_schema_of_vega_lite():
    chart = ratio_chart(report_of())
    altair.VConcatChart.from_dict(chart, validate=True)
    assert len(chart["vconcat"]) == len(OPS)
    drawn = json.dumps(chart)
    # only rows with the most threads are drawn, in the styles of their peers
    assert len(re.findall(r'"ratio": \d', drawn)) == 2 * 2 * (3 + 2 + 2 + 3 + 2 + 2)
    assert set(re.findall(r'"peer": "(\w+)"', drawn)) <= set(PEER_STYLES)


def test_every_peer_has_a_style_and_so_a_place_in_the_picture():
    names = {route.name for routes in ROUTES.values() for route in routes}
    assert names - {OURS} == set(PEER_STYLES)


def test_there_is_no_picture_without_ratios():
    bare = [replace(row, routes=row.routes[:1]) for row in report_of().rows]
    assert ratio_chart(report_of(rows=tuple(bare))) is None
    assert ratio_chart(report_of(rows=())) is None


def test_json_holds_every_sample_and_reason():
    report = report_of()
    text = kernel_json_text(report)
    document = conforming("kernels", text)
    assert document["schema_version"] == SCHEMA_VERSION
    assert len(document["rows"]) == len(report.rows)
    for found, row in zip(document["rows"], report.rows, strict=True):
        assert found["work"]["flops"] == row.work.flops
        assert found["shares"]["copy"] == report.shares(row).copy
        for entry, route in zip(found["routes"], row.routes, strict=True):
            if route.latency is not None:
                assert entry["latency"]["samples_s"] == list(route.latency.samples_s)
                assert entry["ratio"] is None or entry["ratio"]["by_round"] == list(route.ratio.by_round)
            else:
                assert entry["missing"] == {"reason": "left out", "why": "too large"}
    assert document["ceilings"][0]["gemm_flops_per_s"]["float32"] == {"matmul": 9e10, "tiles": 1e11}
    assert document["models"][1]["missing"]["reason"] == "over budget"
    assert document["crossovers"][0]["interval"] == [65.2, 75.7]
    assert re.search(r'"samples_s": \[[^\n]+\]', text)
