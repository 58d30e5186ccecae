"""The closed form: against arithmetic done by hand, against its own polynomial, against the built module."""

from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from sola_profile.case import Resolution, Settings
from sola_profile.cost.closed_form import closed_form, complexity, polynomial
from sola_profile.cost.polynomial import Polynomial, last_rise
from sola_profile.pieces import KINDS, piece_modules
from sola_profile.workload import build
from sola_vision import BackboneSpec, get_spec, list_models

TINY = BackboneSpec("tiny", (32, 32, 64, 64), "L|L|S|S", bridges=("1.1->3.1",), shift=False, num_classes=10)


def test_every_piece_of_a_tiny_backbone_by_hand():
    macs = {piece.name: piece.macs for piece in closed_form(TINY, Resolution(64, 64), batch=2).pieces}
    tokens = [256, 64, 16, 4]
    assert macs == {
        "embedding": 2 * 256 * (3 * 4 * 4) * 32,
        "1.1 linear": 2 * 256 * 4 * 32 * 32,
        "1.1 channel mix": 2 * 256 * 9 * 32 * 32,
        "merging 2": 2 * 64 * (4 * 32) * 32,
        "2.1 linear": 2 * 64 * 4 * 32 * 32,
        "2.1 channel mix": 2 * 64 * 9 * 32 * 32,
        "merging 3": 2 * 16 * (4 * 32) * 64,
        "1.1->3.1": 2 * 16 * 32 * 64,
        "3.1 softmax": 2 * (16 * 4 * 64 * 64 + 2 * tokens[2] ** 2 * 64),
        "3.1 channel mix": 2 * 16 * 9 * 64 * 64,
        "merging 4": 2 * 4 * (4 * 64) * 64,
        "4.1 softmax": 2 * (4 * 4 * 64 * 64 + 2 * tokens[3] ** 2 * 64),
        "4.1 channel mix": 2 * 4 * 9 * 64 * 64,
        "head": 2 * 64 * 10,
    }


@pytest.mark.parametrize("name", list_models())
@settings(max_examples=5)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), batch=st.integers(1, 8))
def test_polynomial_is_exact_where_sides_divide_by_the_stride(name, rows, columns, batch):
    spec = get_spec(name)
    closed = closed_form(spec, Resolution(32 * rows, 32 * columns), batch)
    grown = complexity(spec)
    tokens = 64 * rows * columns
    assert batch * grown.total(tokens) == closed.macs
    assert {kind: batch * grown.by_kind[kind](tokens) for kind in KINDS} == closed.macs_by_kind
    # the products of N × N are all that is quadratic
    assert grown.attention == Polynomial(grown.total.a, Fraction(0), Fraction(0))


@pytest.mark.parametrize("name", list_models())
def test_parameters_and_module_paths_are_those_of_the_built_module(name):
    workload = build(get_spec(name), Settings(), "meta")
    counted = sum(parameter.numel() for parameter in workload.model.parameters())
    assert closed_form(workload.source.spec, Resolution(224, 224)).parameters == counted
    for piece in piece_modules(workload.source.spec):
        workload.model.get_submodule(piece.path)
        workload.model.get_submodule(piece.begins)


@pytest.mark.parametrize("name", [name for name in list_models() if not name.endswith("_linear")])
def test_crossovers_are_where_both_sides_cost_the_same(name):
    grown = complexity(get_spec(name))
    for part, crossing in (
        (grown.by_kind["softmax"], grown.softmax_overtakes),
        (grown.attention, grown.attention_overtakes),
    ):
        before, after = int(crossing * 0.99), int(crossing * 1.01) + 1
        assert 2 * part(before) < grown.total(before)
        assert 2 * part(after) > grown.total(after)


def test_without_softmax_layers_nothing_overtakes():
    grown = complexity(get_spec("sola_t_linear"))
    assert grown.total.a == 0
    assert grown.softmax_overtakes is None
    assert grown.attention_overtakes is None


def test_a_cubic_is_refused():
    tokens = sympy.Symbol("N")
    assert polynomial(3 * tokens**2 / 4 + 5, tokens) == Polynomial(Fraction(3, 4), Fraction(0), Fraction(5))
    with pytest.raises(ValueError, match="at most N²"):
        polynomial(tokens**3, tokens)


ROOTS = st.floats(1e-3, 1e9)


@given(ROOTS, ROOTS)
def test_last_rise_finds_the_larger_root(first, second):
    # (N − r1)(N − r2) = N² − (r1 + r2)·N + r1·r2
    found = last_rise(1.0, -(first + second), first * second)
    # two nearly equal roots may vanish in rounding
    if found is not None:
        assert found == pytest.approx(max(first, second), rel=1e-6) or abs(first - second) < 1e-6 * first


@pytest.mark.parametrize(
    ("coefficients", "expected"),
    [
        ((0.0, 2.0, -6.0), 3.0),
        ((0.0, 0.0, 1.0), None),
        ((0.0, -1.0, 5.0), None),
        ((-1.0, 5.0, 0.0), None),
        ((1.0, 0.0, 1.0), None),
        ((1.0, 0.0, -4.0), 2.0),
        ((1.0, 3.0, 2.0), None),
    ],
)
def test_last_rise_at_the_edges(coefficients, expected):
    assert last_rise(*coefficients) == expected
