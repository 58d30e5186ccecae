"""Reports say what the profile holds: tables, sentences, page, charts, JSON, CSV."""

import csv
import io
import json
import re
from dataclasses import replace
from fractions import Fraction
from xml.etree import ElementTree

import altair
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import sample_profile
from rich.console import Console

from sola_profile.compare.witnesses import Difference
from sola_profile.measure.latency import Doubt
from sola_profile.measure.statistics import Interval
from sola_profile.report import render, svg
from sola_profile.report.charts import specs
from sola_profile.report.folder import write_folder
from sola_profile.report.json_file import SCHEMA_VERSION
from sola_profile.report.numbers import (
    doubt_text,
    duration,
    duration_interval,
    exact,
    missing_text,
    scaled,
    significant,
    tokens_and_side,
)
from sola_profile.report.sentences import coverage_sentence, growth_sentences, polynomial_sentences
from sola_profile.report.tables import (
    Table,
    comparison_table,
    difference_table,
    kinds_table,
    latency_table,
    residual_table,
    work_table,
)
from sola_profile.report.terminal import print_profile, print_table
from sola_profile.result import NotReached, OutOfMemory, OverBudget


def terminal_text(shown, width=100, *, show=print_profile, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    show(shown, console)
    return console.file.getvalue()


def draw(profile):
    with svg.Renderer() as renderer:
        return renderer.draw(specs(profile))


def write(profile, folder, others=()):
    with svg.Renderer() as renderer:
        return write_folder(profile, folder, renderer, others)


def with_model_row(profile, place, **changes):
    rows = list(profile.model.rows)
    rows[place] = replace(rows[place], **changes)
    return replace(profile, contenders=(replace(profile.model, rows=tuple(rows)), *profile.contenders[1:]))


@given(st.floats(1e-9, 1e15))
def test_significant_digits_are_right_and_carry_no_exponent(value):
    text = significant(value)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (significant(999.9), "1,000"),
        (significant(0), "0"),
        (significant(0.012345), "0.0123"),
        (scaled(1_880_059_712), "1.88 G"),
        (scaled(999_999), "1.00 M"),
        (duration(0.9999), "1.00 s"),
        (duration(0.0203), "20.3 ms"),
        (duration(600), "10 min"),
        (duration(12e-6), "12.0 µs"),
        (duration_interval(Interval(0.0198, 0.021)), "19.8 – 21.0 ms"),
        (duration_interval(Interval(0.9, 1.021)), "900 ms – 1.02 s"),
        (exact(Fraction(201, 64)), "201/64"),
        (exact(Fraction(589568)), "589,568"),
        (tokens_and_side(65536, 4), "65,536 tokens (1,024² px)"),
        (tokens_and_side(float("inf"), 4), "∞"),
        (missing_text(OverBudget(15.0, 60.0)), "not measured (≈ 15.0 s a run, budget 60 s)"),
        (missing_text(OutOfMemory(2**31)), "out of memory"),
        (missing_text(OutOfMemory(2**31, 2**30)), "out of memory (needs 2,050 MiB, 1,020 MiB free)"),
        (missing_text(NotReached()), "not reached"),
        (doubt_text(Doubt("few samples", 4)), "4 samples"),
        (doubt_text(Doubt("wide interval", 0.08)), "± 8 %"),
        (doubt_text(Doubt("drift", -0.06)), "drift -6 %"),
    ],
)
def test_numbers(text, expected):
    assert text == expected


def test_tables_hold_the_figures_of_the_profile():
    profile = sample_profile()
    first = profile.model.rows[0]
    work = dict(zip(work_table(profile).columns, work_table(profile).rows[0], strict=True))
    assert work["Tokens per stage"] == "256/64/16/4"
    assert work["Witnesses"] == "4 agree"
    assert float(work["GFLOPs"]) == pytest.approx(2 * first.cost.macs / 1e9, rel=1e-3)
    shares = [float(cell.rstrip(" %")) for cell in kinds_table(profile).rows[0][2:]]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert len(comparison_table(profile).rows) == 9


def test_what_was_not_measured_says_so():
    profile = with_model_row(sample_profile(), 2, latency=None, missing=OverBudget(15.0, 60.0))
    assert latency_table(profile).rows[2][1:] == ("–", "–", "–", "–", "not measured (≈ 15.0 s a run, budget 60 s)")
    assert "512x256: not measured (≈ 15.0 s a run, budget 60 s)" in terminal_text(profile)


def test_differences_are_shown_where_there_are_any():
    profile = sample_profile()
    assert difference_table(profile) is None
    agreement = profile.model.rows[1].agreement
    part = Difference("fvcore", "2.1 linear", 99, 100)
    changed = with_model_row(profile, 1, agreement=replace(agreement, differences=(part,)))
    assert difference_table(changed).rows == (("128", "fvcore", "2.1 linear", "99", "100", "-1"),)
    assert "differ (1)" in terminal_text(changed)


def test_residuals_name_a_verdict_for_every_kind_and_witness():
    profile = sample_profile()
    table = residual_table(profile)
    assert {row[-1] for row in table.rows} == {"agrees"}
    assert len({row[1] for row in table.rows}) == 8
    agreement = profile.model.rows[0].agreement
    macs = {**agreement.by_kind["softmax"], "fvcore": 1, "FlopCounterMode": 2}
    wrong = replace(agreement, by_kind={"softmax": macs}, blind={"fvcore": ("aten::mystery",)})
    seen = replace(profile.model.rows[0].measured_memory, step_bytes=1)
    changed = residual_table(with_model_row(profile, 0, agreement=wrong, measured_memory=seen))
    verdicts = {row[2]: row[-1] for row in changed.rows if row[0] == "64"}
    assert verdicts == {
        "formulas": "agrees",
        "fvcore": "blind to aten::mystery",
        "FlopCounterMode": "one of the two is wrong",
        "allocator": "differs",
    }


def test_sentences_state_the_polynomial_and_the_crossover():
    text = " ".join(polynomial_sentences(sample_profile()))
    assert "201/64·N² + 589,568·N + 288,000" in text
    assert "172,685 tokens (1,662² px)" in text
    linear = " ".join(polynomial_sentences(sample_profile("sola_t_linear", "64,128", measured=False)))
    assert "No layer is quadratic in N." in linear


def test_a_fit_without_freedom_says_so_and_names_sizes_that_would_help():
    profile = sample_profile()
    text = " ".join(growth_sentences(profile.model, profile))
    assert "no freedom" in text
    assert re.search(r"--res \d+(,\d+)* as well", text)


def test_coverage_names_operators_of_unknown_kind():
    profile = sample_profile()
    assert coverage_sentence(profile, names=False).endswith("view).")
    assert "element-wise: add," in coverage_sentence(profile, names=True)
    agreement = profile.model.rows[0].agreement
    entry = replace(agreement.uncounted["fvcore"][0], operator="sola::mystery", kind="")
    changed = with_model_row(profile, 0, agreement=replace(agreement, uncounted={"fvcore": (entry,)}))
    assert "1 of unknown kind may hold some: sola::mystery" in coverage_sentence(changed, names=False)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_terminal_cuts_nothing_off(width):
    text = terminal_text(sample_profile(), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_table_wider_than_the_terminal_keeps_every_figure(width):
    table = Table(
        "Front",
        ("Pattern", "Longest linear run", ""),
        (("LL|LL|LLSLLS|LS", "123,456,789", "odd"),),
        frozenset({"Pattern"}),
    )
    text = terminal_text(table, width, show=print_table)
    assert all(cell in text for cell in table.rows[0][:2])
    assert ("Longest linear run" in text) == (width >= 40)
    assert {"Longest", "linear", "run"} <= set(text.split())
    assert max(map(len, text.splitlines())) <= max(width, 30)


def test_colour_only_on_terminals_and_not_under_no_color(monkeypatch):
    changed = replace(sample_profile(), interrupted=True)
    assert "\x1b[1;31m" in terminal_text(changed, force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "31m" not in terminal_text(changed, force_terminal=True)


def test_the_page_names_its_charts_and_they_exist(tmp_path):
    assert write(sample_profile(), tmp_path, ["result.json"]) == ""
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert sorted(linked) == sorted(path.name for path in tmp_path.glob("*.svg"))
    assert "sola-profile --model sola_t --res 64,128,512x256" in page
    assert "[`result.json`](result.json)" in page
    for line in page.splitlines():
        if line.startswith("|"):
            # a pattern holds bars, which must not split cells
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3
    assert str(tmp_path) not in page


def test_a_page_without_measurements_has_no_latency(tmp_path):
    (tmp_path / "latency.svg").write_text("of an earlier run")
    write(sample_profile("sola_t", "64,128", measured=False), tmp_path)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## Latency" not in page
    assert not (tmp_path / "latency.svg").exists()
    assert "![FLOPs" in page


def test_an_interrupted_page_says_so(tmp_path):
    write(replace(sample_profile(), interrupted=True), tmp_path)
    assert "**Interrupted**" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_renderer_that_fails_costs_only_the_charts(tmp_path, monkeypatch):
    monkeypatch.setattr(svg, "_PROGRAM", "import os; os.abort()")
    assert "exit status" in write(sample_profile(), tmp_path)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "![" not in page
    assert "| 64 |" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "report.html"]


def test_charts_are_svg_on_white_and_repeat_to_the_byte():
    profile = sample_profile()
    charts = draw(profile)
    assert set(charts) == {"latency.svg", "flops.svg", "shares.svg", "memory.svg", "timeline.svg"}
    assert draw(profile) == charts
    for name, text in charts.items():
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg"), name
        assert 'fill="white"' in text, name
    words = " ".join(ElementTree.fromstring(charts["latency.svg"]).itertext())
    for series in ("sola_t", "all linear", "all softmax", "∝ N", "∝ N²"):
        assert series in words


@pytest.mark.parametrize("measured", [True, False])
def test_charts_keep_to_the_schema_of_vega_lite(measured):
    found = specs(sample_profile("sola_t", "64,128,512x256" if measured else "64", measured=measured))
    assert found
    for spec in found.values():
        altair.LayerChart.from_dict(spec, validate=True)
        with pytest.raises(jsonschema.ValidationError):
            altair.LayerChart.from_dict(
                {**spec, "layer": [{**spec["layer"][0], "mark": "no such mark"}]}, validate=True
            )


def test_one_size_makes_charts_without_guides():
    chart = str(specs(sample_profile("sola_t", "64"))["flops.svg"])
    assert "∝" not in chart
    assert "all softmax" in chart


def test_the_crossover_is_marked_where_it_lies_between_the_sizes():
    marked = "softmax layers overtake the rest"
    # 1,662 pixels a side
    assert marked in str(specs(sample_profile("sola_t", "224,2048", measured=False))["flops.svg"])
    assert marked not in str(specs(sample_profile())["flops.svg"])


def test_json_holds_every_sample_and_witness():
    profile = sample_profile()
    document = json.loads(render("json", profile))
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["command"] == profile.command
    assert [backbone["role"] for backbone in document["models"]] == ["model", "linear", "softmax"]
    for backbone, contender in zip(document["models"], profile.contenders, strict=True):
        for found, row in zip(backbone["rows"], contender.rows, strict=True):
            assert found["cost"]["macs"] == row.cost.macs
            assert sum(piece["macs"] for piece in found["cost"]["pieces"]) == row.cost.macs
            assert found["latency"]["samples_s"] == list(row.latency.samples_s)
            assert found["predicted_memory"]["total_bytes"] == row.predicted_memory.total_bytes
    first = document["models"][0]
    assert first["rows"][0]["witnesses"]["macs"]["fvcore"] == profile.model.rows[0].cost.macs
    assert Fraction(first["complexity"]["macs"]["a"]) == profile.model.scaling.complexity.total.a
    assert set(first["latency_fit"]) >= {"a_s", "b_s", "c_s", "freedom"}


def test_json_has_no_infinity_and_keeps_numbers_on_one_line():
    profile = sample_profile()
    fit = profile.model.scaling.latency_fit
    endless = replace(fit, quadratic_overtakes=replace(fit.a, interval=Interval(1.0, float("inf"))))
    scaling = replace(profile.model.scaling, latency_fit=endless)
    changed = replace(profile, contenders=(replace(profile.model, scaling=scaling), *profile.contenders[1:]))
    text = render("json", changed)
    found = json.loads(text)["models"][0]["latency_fit"]["quadratic_overtakes_at_tokens"]
    assert found["interval"] == [1.0, None]
    assert re.search(r'"samples_s": \[[^\n]+\]', text)


def test_csv_has_a_line_per_backbone_and_size():
    profile = sample_profile()
    lines = list(csv.DictReader(io.StringIO(render("csv", profile))))
    assert len(lines) == 9
    assert {line["role"] for line in lines} == {"model", "linear", "softmax"}
    first = profile.model.rows[0]
    assert int(lines[0]["flops"]) == 2 * first.cost.macs
    assert float(lines[0]["latency_median_s"]) == first.latency.median_s
    kinds = [int(value) for name, value in lines[0].items() if name.startswith("macs_")]
    assert sum(kinds) == first.cost.macs
    empty = csv.DictReader(io.StringIO(render("csv", sample_profile("sola_t", "64,128", measured=False))))
    assert {line["latency_median_s"] for line in empty} == {""}
