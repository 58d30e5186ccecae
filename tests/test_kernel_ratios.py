"""Ratios of kernels by rounds, shares of ceilings, and the search for a crossover, on made-up times."""

import pytest
from fake_timer import FakeTimer

from sola_profile.compare.crossover import MOST_TOKENS, crossing, next_tokens
from sola_profile.compare.ratios import Ratio, ratio
from sola_profile.compare.shares import shares
from sola_profile.cost.kernels import Work
from sola_profile.measure import ceilings, contest
from sola_profile.measure.ceilings import Ceilings, Gemm, measure_ceilings
from sola_profile.measure.contest import Contestant, prepare, race, raise_failure
from sola_profile.measure.latency import Sample, WarmUp, summarize
from sola_profile.measure.statistics import Interval


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Samples of any length count; ceilings are those of small matrices."""
    monkeypatch.setattr(contest, "SHORTEST_SAMPLE_S", 1e-6)
    monkeypatch.setattr(ceilings, "SIDES", (8,))
    monkeypatch.setattr(ceilings, "LEAST_COPY_BYTES", 2**12)
    monkeypatch.setattr(ceilings, "LAST_CACHE", tmp_path / "nowhere")


def contest_of(timer, rounds, limit_s, **durations_s):
    contestants = {name: prepare(timer.step(time_s), timer, 0.0) for name, time_s in durations_s.items()}
    race(contestants, timer, rounds, limit_s, raise_failure)
    return {name: contestant.latency() for name, contestant in contestants.items()}


def test_a_ratio_by_rounds_survives_a_machine_that_slows_down():
    found = contest_of(FakeTimer(slow_down=0.01), 9, 1e9, ours=1.0, peer=3.0)
    compared = ratio(found["ours"], found["peer"])
    assert len(compared.by_round) == 9
    # the peer comes one run later in every round
    assert compared.value == pytest.approx(3.03)
    assert compared.interval.low == pytest.approx(compared.interval.high)
    # without rounds the drift of the machine would be in the comparison
    assert found["ours"].median_s > 1.05


def test_the_first_round_is_run_whatever_the_limit():
    found = contest_of(FakeTimer(), 9, 4.5, ours=1.0, peer=3.0)
    # in the time after the first round ours has two more turns, and the peer one
    assert (found["ours"].rounds, found["peer"].rounds) == ((0, 1), (0, 1))
    compared = ratio(found["ours"], found["peer"])
    assert compared.value == pytest.approx(3.0)
    assert compared.interval is None
    assert contest_of(FakeTimer(), 9, 0.0, ours=1.0, peer=3.0)["peer"].rounds == (0,)


def test_a_ratio_takes_the_rounds_that_both_have():
    ours = latency_of([(0, 1.0), (1, 2.0), (1, 4.0), (2, 1.0)])
    peer = latency_of([(1, 6.0), (2, 5.0), (3, 100.0)])
    assert ratio(ours, peer).by_round == (2.0, 5.0)
    assert ratio(ours, latency_of([(7, 1.0)])) is None


def latency_of(samples):
    return summarize([Sample("x", number, time_s) for number, time_s in samples], WarmUp((1.0,), settled=True))


def test_short_calls_are_repeated_and_divided(monkeypatch):
    monkeypatch.setattr(contest, "SHORTEST_SAMPLE_S", 1.0)
    timer = FakeTimer()
    contestant = prepare(timer.step(0.3), timer, 10.0)
    assert contestant.calls == 4
    race({"x": contestant}, timer, 2, 1e9, raise_failure)
    assert contestant.latency().median_s == pytest.approx(0.3)
    assert Contestant(timer.step(1.0), 1, WarmUp((1.0,), settled=True)).latency() is None


def test_shares_of_the_ceilings():
    ceiling = Ceilings(1, {"float32": Gemm(matmul=80.0, tiles=100.0)}, copy_bytes_per_s=10.0, exp_per_s=5.0)
    found = shares(Work(macs=100, exponentials=10, moved_bytes=20), 8.0, ceiling, "float32")
    assert (found.flops_per_s, found.gemm) == (25.0, 0.25)
    assert (found.bytes_per_s, found.copy) == (2.5, 0.25)
    # 2 s of products and 2 s of exponentials
    assert found.floor == 0.5


def test_ceilings_are_rates_of_all_threads():
    found = measure_ceilings(2, ["float32", "bfloat16"], 0.001)
    assert set(found.gemm) == {"float32", "bfloat16"}
    assert found.threads == 2
    for gemm in found.gemm.values():
        assert gemm.ceiling == max(gemm.matmul, gemm.tiles) > 0
    assert found.copy_bytes_per_s > 0
    assert found.exp_per_s > 0


def test_the_last_cache_is_read_where_it_is_told(tmp_path, monkeypatch):
    size = tmp_path / "size"
    monkeypatch.setattr(ceilings, "LAST_CACHE", size)
    assert ceilings._last_cache_bytes() == 0
    for text, value in (("32768K\n", 2**25), ("32M", 2**25), ("what", 0)):
        size.write_text(text)
        assert ceilings._last_cache_bytes() == value


def measured(value):
    return Ratio(value, Interval(0.98 * value, 1.02 * value), (value,) * 5)


def search(curve):
    points = {}
    while (tokens := next_tokens(points)) is not None:
        assert len(points) < 20
        points[tokens] = measured(curve(tokens))
    return points


@pytest.mark.parametrize("true", [9, 64, 100, 333, 3000])
def test_the_search_closes_in_on_the_crossing(true):
    points = search(lambda tokens: tokens / true)
    tokens, interval = crossing(points)
    assert tokens == pytest.approx(true, rel=1e-3)
    assert interval.low == pytest.approx(true / 1.02, rel=1e-2)
    assert interval.high == pytest.approx(true / 0.98, rel=1e-2)
    assert len(points) <= 12


def test_no_crossing_is_none():
    for curve in (lambda tokens: 2.0, lambda tokens: 0.5):
        points = search(curve)
        assert crossing(points) is None
        assert max(points) <= MOST_TOKENS


def test_a_crossing_in_noise_stays_near_its_neighbours():
    tokens, interval = crossing({64: measured(0.999), 80: measured(1.001)})
    assert 64 <= tokens <= 80
    # intervals that both hold 1 tell no more than the next sizes would
    assert interval.low >= 64 * (64 / 80) - 1
    assert interval.high <= 80 * (80 / 64) + 1
    assert crossing({64: Ratio(0.5, None, (0.5,)), 80: measured(1.001)})[1] is None
