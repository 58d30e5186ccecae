"""Fits recover known polynomials, slopes recover known powers, crossovers their definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sola_profile.compare.scaling import fit_quadratic, helpful_sizes, local_slopes

SIZES = [3136, 7744, 16384, 33856, 65536, 129600]


def times_of(a, b, c, sizes=SIZES):
    return [a * n * n + b * n + c for n in sizes]


def exact_draws(times):
    return [np.full(50, value) for value in times]


@given(
    a=st.sampled_from([0.0, 1e-13, 1e-11, 3e-10]),
    b=st.sampled_from([0.0, 1e-8, 1e-6, 4e-5]),
    c=st.sampled_from([0.0, 1e-4, 5e-3]),
)
def test_fit_recovers_a_polynomial_without_noise(a, b, c):
    times = times_of(a, b, c)
    if min(times) == 0:
        return
    fit = fit_quadratic(SIZES, times, exact_draws(times))
    curve = [fit(n) for n in SIZES]
    assert curve == pytest.approx(times, rel=1e-6)
    assert fit.worst_residual < 1e-6
    assert fit.freedom == 3
    # a coefficient is recovered as far as its part of the time is not drowned by the rest
    for found, true, part in ((fit.a, a, a * SIZES[-1] ** 2), (fit.b, b, b * SIZES[-1]), (fit.c, c, c)):
        if part > 1e-3 * times[-1]:
            assert found.value == pytest.approx(true, rel=1e-3)
        assert found.value >= 0


def test_intervals_cover_the_truth_under_noise():
    a, b, c = 2e-11, 8e-6, 4e-3
    times = times_of(a, b, c)
    covered = np.zeros(3)
    for seed in range(40):
        generator = np.random.default_rng(seed)
        samples = [time * (1 + 0.03 * generator.standard_normal(20)) for time in times]
        draws = [np.median(generator.choice(s, (200, 20)), axis=1) for s in samples]
        fit = fit_quadratic(SIZES, [float(np.median(s)) for s in samples], draws)
        for place, (found, true) in enumerate(((fit.a, a), (fit.b, b), (fit.c, c))):
            assert found.interval.low <= found.value <= found.interval.high or found.interval.low >= 0
            covered[place] += found.interval.low <= true <= found.interval.high
    # 95 % intervals over 40 trials; 28 of 40 has a chance below 1e-7 if they are right
    assert covered.min() >= 28


def test_coefficients_never_go_below_zero():
    # faster than linear: an unconstrained fit would bend downwards
    times = [n**0.7 * 1e-4 for n in SIZES]
    fit = fit_quadratic(SIZES, times, exact_draws(times))
    assert min(fit.a.value, fit.b.value, fit.c.value) == 0
    assert fit.quadratic_overtakes is None
    assert fit.worst_residual > 0.05


def test_the_crossover_is_where_the_quadratic_part_is_half():
    times = times_of(1e-10, 1e-6, 1e-3)
    crossing = fit_quadratic(SIZES, times, exact_draws(times)).quadratic_overtakes
    n = crossing.value
    assert 1e-10 * n * n == pytest.approx(1e-6 * n + 1e-3, rel=1e-4)
    assert crossing.interval.low == pytest.approx(n)


def test_three_sizes_leave_no_freedom_and_two_make_no_fit():
    times = times_of(1e-10, 1e-6, 1e-3)
    assert fit_quadratic(SIZES[:3], times[:3], exact_draws(times[:3])).freedom == 0
    assert fit_quadratic(SIZES[:2], times[:2], exact_draws(times[:2])) is None
    assert fit_quadratic([100, 100, 100], times[:3], exact_draws(times[:3])) is None


@given(power=st.floats(0, 3), factor=st.floats(1e-6, 1e3))
def test_slopes_of_a_power_are_that_power(power, factor):
    values = [factor * n**power for n in SIZES]
    slopes = local_slopes(SIZES, values, exact_draws(values))
    assert [slope.value for slope in slopes] == pytest.approx([power] * 5, abs=1e-6)
    assert all(slope.interval.low == pytest.approx(power, abs=1e-6) for slope in slopes)


def test_sizes_of_equal_area_have_no_slope_between_them():
    assert [slope.to_tokens for slope in local_slopes([100, 100, 400], [1.0, 1.1, 4.0])] == [400]


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=8, unique=True))
def test_helpful_sizes_are_new_and_divide_by_the_stride(sides):
    added = helpful_sizes(sides, 32)
    assert not set(added) & set(sides)
    assert all(side % 32 == 0 and side > 0 for side in added)
    assert len(set(sides)) + len(added) <= max(6, len(sides))
    if len(sides) < 6 and max(sides) >= 64:
        assert max(added) > max(sides)
