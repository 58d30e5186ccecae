"""``sola_profile.formula`` in Python and in notebooks."""

import io

import pytest
from rich.console import Console
from torch import nn

import sola_profile
from sola_profile.case import Resolution


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GELU())


def test_a_module_of_the_users_own_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Dropout(0.5)).train()
    weight = model[0].weight
    found = sola_profile.formula(model, [Resolution(64, 96)])
    assert model.training
    assert model[0].weight is weight
    assert weight.device.type == "cpu"
    assert found.formula.source.name == "Sequential"
    (row,) = found.rows
    assert row.exact
    assert row.totals.macs == 16 * 24 * 3 * 16 * 8


def test_a_factory_is_called():
    found = sola_profile.formula(lambda: nn.Conv2d(1, 2, 1), "64", input_shape="2x1xHxW")
    assert found.rows[0].totals.macs == 2 * 2 * 64 * 64


def test_it_shows_itself_on_a_terminal_and_in_a_notebook():
    found = sola_profile.formula(small(), "64,128")
    console = Console(file=io.StringIO(), width=100)
    console.print(found)
    html = found._repr_html_()
    for shown in (console.file.getvalue(), html):
        assert "MACs by kind" in shown
        assert "MACs          = 384·N" in shown
        assert "Coverage: 100 %" in shown
    assert html.startswith("<pre")


def test_a_wrong_argument_is_explained():
    with pytest.raises(ValueError, match="did you mean 'sola_t'"):
        sola_profile.formula("sola_tt")
    with pytest.raises(ValueError, match="the letters H and W once each"):
        sola_profile.formula(small(), "64", input_shape="1x3x64x64")
    for seconds in (0, float("nan"), "60"):
        with pytest.raises(ValueError, match=f"limit_s: expected more than 0 seconds, got {seconds!r}"):
            sola_profile.formula(small(), "64", limit_s=seconds)
    with pytest.raises(AttributeError, match="no attribute 'profil'"):
        sola_profile.profil  # noqa: B018
