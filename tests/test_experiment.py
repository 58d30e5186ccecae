"""Pattern experiments: statistics with known answers, a log that survives, processes that may die, the page."""

import os
import signal
from dataclasses import dataclass

import altair
import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from sola_profile.commands.experiment import experiment, read_patterns
from sola_profile.machine import environment
from sola_profile.report.experiment_chart import experiment_chart
from sola_profile.study.experiment import Experiment, contests, paper_rows
from sola_profile.study.seed_statistics import (
    bootstrap_interval,
    differences,
    holm,
    power,
    rank_agreement,
    seeds_needed,
)
from sola_profile.study.trial import Outcome, Trial, paper_accuracies, plan
from sola_profile.study.trial_crew import Crew, Failure, config_of, fingerprint
from sola_profile.study.trial_log import HEADER, TrialLog
from sola_vision.train.lock import only_writer

PATTERNS = ("LLLLLL", "LLSLLS", "SSSSSS")


def outcome(pattern="LLLLLL", seed=0, correct=60, total=100, task="match", mixer="wkv", settings="a"):
    return Outcome(Trial(mixer, task, pattern, seed), correct, total, 0.5, 1.0, settings, "1.0", "2.13")


def test_holm_is_the_textbook_example():
    # four tests by hand: 4·0.005, 3·0.01, 2·0.03, then never less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_paired_difference_is_scipys_t_test():
    ours, theirs = np.array([0.61, 0.64, 0.60, 0.66, 0.63]), np.array([0.58, 0.63, 0.59, 0.61, 0.60])
    (found,) = differences([list(ours - theirs)])
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.adjusted_p == found.p
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))


def test_five_equal_seeds_separate_and_one_seed_says_nothing():
    same, apart, single = differences([[0.0] * 5, [0.02] * 5, [0.02]])
    assert (same.p, same.separated, same.seeds_needed) == (1.0, False, None)
    assert (apart.p, apart.separated, apart.seeds_needed) == (0.0, True, 2)
    assert single is None


def test_power_agrees_with_simulation():
    generator = np.random.default_rng(1)
    draws = generator.normal(1.2, 1, size=(20_000, 6))
    t = draws.mean(1) / (draws.std(1, ddof=1) / np.sqrt(6))
    found = np.mean(np.abs(t) > stats.t.ppf(0.975, 5))
    assert power(1.2, 6, 0.05) == pytest.approx(found, abs=0.01)


def test_seeds_needed_is_the_first_number_with_the_power():
    needed = seeds_needed(0.01, 0.02, 0.05 / 9)
    assert power(0.5, needed, 0.05 / 9) >= 0.8 > power(0.5, needed - 1, 0.05 / 9)
    assert seeds_needed(1e-6, 0.02, 0.05) is None


def test_bootstrap_holds_the_mean_and_is_the_same_every_time():
    values = [0.6, 0.62, 0.65, 0.61, 0.63]
    interval = bootstrap_interval(values)
    assert interval == bootstrap_interval(values)
    assert min(values) <= interval.low < np.mean(values) < interval.high <= max(values)
    assert bootstrap_interval([0.6]) is None


def test_the_chart_shows_chance_where_runs_stayed_at_it():
    found = contests([outcome(correct=60), outcome("LLSLLS", correct=99)], PATTERNS, {"match": 0.5})
    chart = experiment_chart(Experiment(found, (), 2, (), "", environment()))
    altair.ConcatChart.from_dict(chart, validate=True)
    assert chart["concat"][0]["layer"][0]["data"]["values"] == [{"accuracy": 50.0}]
    found = contests([outcome(correct=90), outcome("LLSLLS", correct=99)], PATTERNS, {"match": 0.5})
    assert len(experiment_chart(Experiment(found, (), 2, (), "", environment()))["concat"][0]["layer"]) == 3


def test_a_rank_correlation_says_of_how_many_patterns():
    assert rank_agreement([5, 4, 3], [1, 2, 3]).count == 3


def test_rank_agreement_of_an_order_and_its_reverse():
    forward = rank_agreement([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])
    assert forward.correlation == pytest.approx(1)
    # 2 of 5! orders are as extreme
    assert forward.p == pytest.approx(2 / 120, rel=0.5)
    assert rank_agreement([5, 4, 3, 2, 1], [1, 2, 3, 4, 5]).correlation == pytest.approx(-1)
    assert rank_agreement([1, 1, 1], [1, 2, 3]) is None


def test_the_papers_gaps_are_in_units_of_their_noise():
    rows = {row.pattern: row for row in paper_rows()}
    assert len(rows) == len(paper_accuracies()) == 10
    assert rows["LLSLLS"].gap_in_errors == 0
    # √(0.8753·0.1247/5000) = 0.467 points, and 1.00 points behind
    assert 100 * rows["LLLLLL"].standard_error == pytest.approx(0.4672, abs=1e-3)
    assert rows["LLLLLL"].gap_in_errors == pytest.approx(1.00 / np.hypot(0.4672, 0.4507), rel=0.01)


def test_plan_has_every_pattern_of_a_seed_before_the_next():
    trials = list(plan(("match", "count"), ("wkv", "decay"), PATTERNS, 2))
    assert len(trials) == len(set(trials)) == 2 * 2 * 3 * 2
    assert {trial.seed for trial in trials[:6]} == {0}
    assert {trial.mixer for trial in trials[:12]} == {"wkv"}


def test_log_goes_on_where_it_ends_and_drops_half_a_line(tmp_path):
    path = tmp_path / "runs.csv"
    log = TrialLog(path)
    log.add(outcome(seed=0))
    log.add(outcome(seed=1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    again = TrialLog(path)
    assert list(again.outcomes.values()) == [outcome(seed=0)]
    again.add(outcome(seed=1))
    assert path.read_bytes() == whole


def test_log_is_read_beside_its_writer(tmp_path):
    path = tmp_path / "runs.csv"
    writer = TrialLog(path)
    writer.add(outcome(seed=0))
    whole = path.read_bytes()
    # a reader in the midst of a line, and another that began before there was a header
    for half in (HEADER[:9], HEADER, whole[:-9], whole + whole[-20:-5]):
        path.write_bytes(half)
        assert len(TrialLog(path).outcomes) == (len(half) > len(whole))
        assert path.read_bytes() == half
    path.unlink()
    second = TrialLog(path)
    TrialLog(path).add(outcome(seed=0))
    second.add(outcome(seed=1))
    assert path.read_bytes().count(HEADER) == 1
    assert list(TrialLog(path).outcomes.values()) == [outcome(seed=0), outcome(seed=1)]


def test_a_second_process_is_refused_and_a_report_is_not(sola_profile, tmp_path):
    TrialLog(tmp_path / "runs.csv").add(outcome(settings=fingerprint(config_of(outcome().trial))))
    arguments = ("experiment", "--task", "match", "--pattern", "LLLLLL", "--seeds", "1", "--out", str(tmp_path))
    with (tmp_path / "runs.csv").open("a") as file:
        file.write("wkv,match")
    before = (tmp_path / "runs.csv").read_bytes()
    with only_writer(tmp_path):
        code, _, err = sola_profile(*arguments)
        assert code == 2
        assert f"another process is writing to {tmp_path}" in err
        assert not (tmp_path / "README.md").exists()
        assert sola_profile(*arguments, "--report-only")[0] == 0
    assert (tmp_path / "README.md").exists()
    assert sola_profile(*arguments)[0] == 0
    assert (tmp_path / "runs.csv").read_bytes() == before


def test_log_refuses_what_it_can_not_mix(tmp_path):
    path = tmp_path / "runs.csv"
    TrialLog(path).add(outcome(settings="a"))
    with pytest.raises(ValueError, match="other settings"):
        TrialLog(path).check_settings([(outcome().trial, "b")])
    for text in ("name,value\n1,2\n", "name,value\n1,2", "notes without an end"):
        path.write_text(text)
        with pytest.raises(ValueError, match="other columns"):
            TrialLog(path)
        assert path.read_text() == text
    path.write_bytes(HEADER + b"\xff\n")
    with pytest.raises(ValueError, match=r"runs.csv is no text"):
        TrialLog(path)


def test_log_begins_anew_where_even_its_first_line_is_cut(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes(HEADER[:20])
    TrialLog(path).add(outcome())
    assert list(TrialLog(path).outcomes.values()) == [outcome()]


def test_log_names_the_line_that_can_not_be(tmp_path):
    path = tmp_path / "runs.csv"
    TrialLog(path).add(outcome(correct=101, total=100))
    with pytest.raises(ValueError, match="line 2: correct: expected 0 to total=100, got 101"):
        TrialLog(path)


def test_contests_pair_by_seed():
    runs = [outcome("LLLLLL", seed, 60 + seed) for seed in range(3)]
    # seed 3 has no partner
    runs += [outcome("LLSLLS", seed, 62 + seed) for seed in range(4)]
    (contest,) = contests(runs, PATTERNS, {"match": 0.5})
    linear, mixed = contest.standings
    assert linear.against == {"LLSLLS": linear.against["LLSLLS"]}
    difference = mixed.against["LLLLLL"]
    assert (difference.seeds, difference.mean) == (3, pytest.approx(0.02))
    assert contest.paper is None
    # 0.5 + 3·√(0.25/100) = 0.65, which 60 to 65 of 100 don't pass
    assert contest.unlearnt == 3 + 4


def faked(trial):
    """Stands for the trainer, in the other process."""
    if trial.seed == 1:
        raise ArithmeticError("diverged")
    if trial.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return outcome(trial.pattern, trial.seed, 50 + trial.seed)


def test_a_run_that_fails_or_is_killed_costs_itself_alone():
    trials = [Trial("wkv", "match", "LLLLLL", seed) for seed in range(5)]
    with Crew(2, faked) as crew:
        ends = list(crew.run(trials))
    failures = {end.trial.seed: end.why for end in ends if isinstance(end, Failure)}
    assert sorted(end.trial.seed for end in ends if isinstance(end, Outcome)) == [0, 3, 4]
    assert "ArithmeticError: diverged" in failures[1]
    assert "exit status -9" in failures[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pattern", "LLSLLX"], "expected 6 letters L or S"),
        (["--pattern", "LLS"], "got 'LLS'"),
        (["--seeds", "0"], "expected at least 1"),
        (["--jobs", "0"], "expected at least 1"),
        (["--budget", "0"], "more than 0 seconds"),
        (["--task", "mach"], "match"),
        (["--mixer", "wvk"], "wkv"),
    ],
)
def test_bad_use_is_named(arguments, message, tmp_path):
    result = CliRunner().invoke(experiment, [*arguments, "--out", str(tmp_path / "out"), "--report-only"])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_fingerprint_is_of_what_was_chosen():
    @dataclass(frozen=True)
    class Old:
        steps: int
        rate: float = 0.1

    @dataclass(frozen=True)
    class New(Old):
        later: tuple = ()

    assert fingerprint(Old(5)) == fingerprint(Old(5, 0.1)) == fingerprint(New(5))
    assert len({fingerprint(each) for each in (Old(5), Old(6), Old(5, 0.2), New(5, later=(1,)))}) == 4


def test_paper_is_ten_patterns():
    assert read_patterns("paper") == tuple(paper_accuracies())
    assert read_patterns("LLLLLL, SSSSSS") == ("LLLLLL", "SSSSSS")
