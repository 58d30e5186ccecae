"""Classes of growth are named where the sizes tell them apart and nowhere else; crossovers of curves that are known."""

from fractions import Fraction
from math import log

import numpy as np
import pytest

from sola_profile.compare.growth_class import CLASSES, FEWEST_SIZES, growth_class
from sola_profile.compare.overtaking import crossover
from sola_profile.compare.scaling import Timings
from sola_profile.cost.polynomial import Polynomial

SIDES = [224, 352, 512, 736, 1024, 1440]
TRUTHS = {
    "constant": lambda n: 0.05,
    "linear": lambda n: 0.002 + 1e-6 * n,
    "N log N": lambda n: 0.002 + 1e-7 * n * log(n),
    "quadratic": lambda n: 0.002 + 1e-11 * n * n,
    "linear and quadratic": lambda n: 0.002 + 1e-6 * n + 4e-12 * n * n,
}


def tokens_of(side):
    return (side // 4) ** 2


def side_of(tokens):
    return max(1, round(4 * tokens**0.5 / 32)) * 32


def timings(truth, sides=SIDES, noise=0.003, seed=0):
    generator = np.random.default_rng(seed)
    tokens = [tokens_of(side) for side in sides]
    medians = [truth(n) * (1 + noise * generator.standard_normal()) for n in tokens]
    return Timings(tokens, medians, [m * (1 + noise * generator.standard_normal(200)) for m in medians])


def classify(*arguments, **options):
    return growth_class(timings(*arguments, **options), side_of, tokens_of)


@pytest.mark.parametrize("name", TRUTHS)
def test_a_class_that_the_sizes_show_is_named(name):
    found = [classify(TRUTHS[name], seed=seed) for seed in range(10)]
    # noise may leave another class open now and then, but must not name a wrong one
    assert {one.name for one in found} <= {name, None}
    assert sum(one.name == name for one in found) >= 8
    assert sum(found[0].weights.values()) == pytest.approx(1)
    assert set(found[0].weights) == set(CLASSES)


def test_below_five_sizes_nothing_is_named():
    found = classify(TRUTHS["linear"], SIDES[: FEWEST_SIZES - 1])
    assert (found.open, found.name, found.separating_side) == ((), None, None)
    # the same size five times is one size
    assert classify(TRUTHS["linear"], [224] * 6).open == ()


def test_what_the_sizes_leave_open_is_refused_and_a_size_that_settles_it_is_named():
    def small_quadratic_part(n):
        # 5 % at the largest size: noise of 1 % can't tell it from none
        return 0.002 + 1e-6 * n + 0.05e-6 * n * n / tokens_of(SIDES[-1])

    found = classify(small_quadratic_part, noise=0.01, seed=3)
    assert found.name is None
    assert set(found.open) == {"linear", "linear and quadratic"}
    assert found.separating_side > SIDES[0]
    assert found.separating_side % 32 == 0
    assert found.separating_side not in SIDES
    # with that size, and no more noise than was thought, either truth is found out
    more = [*SIDES, 2 * found.separating_side]
    assert classify(small_quadratic_part, more, noise=0.001).name == "linear and quadratic"
    assert classify(TRUTHS["linear"], more, noise=0.001).name == "linear"


def test_noise_that_no_class_explains_keeps_classes_open():
    tokens = [tokens_of(side) for side in SIDES]
    bumps = [1.3, 0.7, 1.3, 0.7, 1.3, 0.8]
    medians = [bump * TRUTHS["linear"](n) for bump, n in zip(bumps, tokens, strict=True)]
    found = growth_class(Timings(tokens, medians, [np.full(50, m) for m in medians]), side_of, tokens_of)
    assert found.noise > 0.05
    assert found.name is None


def test_crossovers_are_exact_in_products_and_have_intervals_in_time():
    dearer = Polynomial(Fraction(1), Fraction(0), Fraction(0))
    cheaper = Polynomial(Fraction(0), Fraction(10_000), Fraction(0))
    covered = 0
    for seed in range(20):
        times = (
            timings(lambda n: 1e-10 * n * n + 1e-3, noise=0.02, seed=seed),
            timings(lambda n: 1e-6 * n + 1e-3, noise=0.02, seed=100 + seed),
        )
        found = crossover(("softmax", "model"), (dearer, cheaper), times)
        assert found.macs_at == 10_000
        assert not found.beyond
        covered += found.time_at.interval.low <= 10_000 <= found.time_at.interval.high
    # 95 % intervals; fewer than 14 of 20 has a chance below 1e-4 if they are right
    assert covered >= 14


def test_a_crossover_outside_the_sizes_says_so_and_one_that_never_comes_is_none():
    flat = Polynomial(Fraction(0), Fraction(1), Fraction(0))
    twice = Polynomial(Fraction(0), Fraction(2), Fraction(0))
    far = crossover(
        ("model", "linear"),
        (twice, flat),
        (timings(lambda n: 1e-12 * n * n, noise=0), timings(lambda n: 1e-6 * n, noise=0)),
    )
    # dearer at every size in products; in time from a million tokens on
    assert far.macs_at is None
    assert far.time_at.value == pytest.approx(1e6, rel=1e-3)
    assert far.beyond
    never = (timings(lambda n: 1e-6 * n, noise=0), timings(lambda n: 2e-6 * n, noise=0))
    assert crossover(("model", "linear"), (twice, flat), never).time_at is None
    few = tuple(Timings(t.tokens[:2], t.medians_s[:2], t.resampled_s[:2]) for t in never)
    assert crossover(("model", "linear"), (twice, flat), few).time_at is None
