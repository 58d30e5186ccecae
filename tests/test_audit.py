"""Published costs beside ours: what explains a difference, and that the list can be trusted."""

from dataclasses import replace
from pathlib import Path

import pytest
from schemas import conforming

from sola_profile import audit
from sola_profile.audit import AGREES, BLIND, BOTH, NORMS, OTHER_MODEL, UNEXPLAINED, Figure, audited, read_figures
from sola_profile.case import Resolution
from sola_profile.report.audit import summary
from sola_profile.source import read_source

FOUND = audit._Counted(macs=4_600_000_000, parameters=22_050_664, fused_macs=360_000_000, others=14_000_000)


@pytest.mark.parametrize(
    ("gmacs", "explanation"),
    [("4.6", AGREES), ("4.60", AGREES), ("4.61", NORMS), ("4.24", BLIND), ("4.25", BOTH), ("9.2", UNEXPLAINED)],
)
def test_the_first_account_that_rounds_to_the_figure_explains_it(gmacs, explanation):
    row = audited(Figure("x", "224", gmacs, "somebody", "22.05"), FOUND)
    assert row.explanation == explanation
    assert row.residual == pytest.approx(float(gmacs) / 4.6 - 1)
    assert row.parameters_agree


def test_other_parameters_are_another_model_whatever_the_macs_are():
    row = audited(Figure("x", "224", "4.6", "somebody", "22.5"), FOUND)
    assert row.explanation == OTHER_MODEL
    assert not row.parameters_agree


def test_the_summary_names_the_worst_of_what_is_unexplained():
    figure = Figure("x", "224", "4.6", "somebody")
    rows = [audited(figure, FOUND), *(audited(replace(figure, gmacs=gmacs), FOUND) for gmacs in ("4.61", "9.2", "3.0"))]
    assert summary(rows) == (
        "4 published figures: 1 agree, 1 differ by what their counter sees, 2 are unexplained, by up to +100.0 % (x)."
    )


def test_every_figure_of_the_list_can_be_looked_up():
    figures, sources = read_figures()
    assert len(figures) == len(set(figures)) > 40
    for figure in figures:
        read_source(figure.model)
        Resolution.parse(figure.size)
        assert float(figure.gmacs) > 0
        assert float(figure.params_m) > 0
    assert {figure.source for figure in figures} == set(sources)
    assert all(source.where for source in sources.values())


def test_the_command_counts_and_writes_a_page(sola_profile, tmp_path):
    name = "timm:vit_tiny_patch16_224"
    code, out, err = sola_profile(
        "audit", "--model", name, "--out", str(tmp_path), "--json", str(tmp_path / "all.json")
    )
    assert code == 0
    assert f"counting {name} at 224" in err
    assert "2 published figures: 0 agree, 2 differ by what their counter sees, none is unexplained." in out
    rows = conforming("audit", Path(tmp_path / "all.json").read_text())["rows"]
    assert [row["explanation"] for row in rows] == [NORMS, BOTH]
    page = (tmp_path / "audit.md").read_text()
    assert "| 1.26 | 1.254 | +0.5 % | counts norms too | 5.717, agrees |" in page
    assert "huggingface/pytorch-image-models" in page


def test_an_unknown_model_is_bad_use(sola_profile):
    code, _, err = sola_profile("audit", "--model", "timm:vit_tiny_patch16_225")
    assert code == 2
    assert "did you mean 'timm:vit_tiny_patch16_224'?" in err
