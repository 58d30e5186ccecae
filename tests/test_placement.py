"""Placement: the front against brute force, costs against the closed form, scores with known answers, the command."""

import re
from dataclasses import replace
from itertools import product
from math import inf, log, sqrt

import altair
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schemas import conforming

import sola_profile
from sola_profile.case import Resolution, Settings
from sola_profile.cost.recording import record_at
from sola_profile.cost.roofline import predict_times
from sola_profile.machine_store import find_machine
from sola_profile.measure import latency
from sola_profile.report.placement import residual_sentences, sentences
from sola_profile.report.placement_chart import placement_chart
from sola_profile.source import ModelSource
from sola_profile.study import block_times, confirming, placing, search
from sola_profile.study.effective_field import effective_area
from sola_profile.study.judge import Judge
from sola_profile.study.placement import Budgets, Question
from sola_profile.study.placing import Placing
from sola_profile.study.reach import UNIT, LongestRun, horizon, loss_of, mean_reach
from sola_profile.study.search import Bounded, front
from sola_profile.study.space import Costs, Space, macs, softmax_layers
from sola_vision.backbone_terms import spec_terms
from sola_vision.presets import get_spec
from sola_vision.spec import BackboneSpec, Bridge, LayerId

SOLA_T = get_spec("sola_t")
SMALL = Resolution(64, 96)
TINY = BackboneSpec("tiny", (32, 32, 64, 64), "L|L|LLS|S", bridges=("1.1->3.3",))


@st.composite
def spaces(draw):
    """Small backbones: depths, two or three letters, bridges from any layer to any later one, some stages fixed."""
    depths = [draw(st.integers(1, 2)) for _ in range(4)]
    mixers = {"L": "wkv", "S": "softmax", **({"D": "decay"} if draw(st.booleans()) else {})}
    places = [LayerId(stage, layer) for stage, depth in enumerate(depths, 1) for layer in range(1, depth + 1)]
    wires = draw(st.lists(st.sampled_from([(a, b) for a in places for b in places if a < b]), max_size=3, unique=True))
    letters = ["S" if any(target == place for _, target in wires) else "L" for place in places]
    wires = [(a, b) for a, b in wires if letters[places.index(a)] != "S"]
    rest = iter(letters)
    pattern = "|".join("".join(next(rest) for _ in range(depth)) for depth in depths)
    spec = BackboneSpec("x", (32, 32, 64, 64), pattern, mixers=mixers, bridges=tuple(Bridge(a, b) for a, b in wires))
    stages = draw(st.sets(st.integers(1, 4), min_size=2))
    space = Space(spec, tuple(sorted(stages)))
    return space if len(mixers) == 2 or space.size <= 800 else Space(spec, (1, 4))


def brute_front(space, score, cost, budgets):
    found = set()
    for choice in product(*(space.choices(place) for place in space.places)):
        letters = "".join(choice)
        if all(each.costs.of(space, letters) <= each.most for each in (cost, *budgets)):
            found.add((loss_of(score, letters), cost.costs.of(space, letters)))
    return {a for a in found if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in found)}


@settings(max_examples=40)
@given(data=st.data())
def test_the_front_is_that_of_all_patterns(data):
    space = data.draw(spaces())
    stages, spec = range(1, 5), space.spec
    number = st.integers(0, 9)

    def costs():
        return Costs(
            data.draw(number),
            {(stage, letter): data.draw(number) for stage in stages for letter in spec.mixers},
            {bridge: data.draw(number) for bridge in spec.bridges},
        )

    variances = {
        (index, letter): inf if space.is_softmax(letter) else data.draw(st.sampled_from([1e-4, 0.001, 0.01, 0.05]))
        for index in range(len(space.places))
        for letter in spec.mixers
    }
    score = data.draw(st.sampled_from([LongestRun(space.is_softmax), mean_reach(space, variances)]))
    limit = st.one_of(st.just(inf), st.integers(0, 60))
    cost = Bounded(costs(), data.draw(limit))
    budgets = [Bounded(costs(), data.draw(limit)) for _ in range(data.draw(st.integers(0, 2)))]
    budgets += [Bounded(softmax_layers(space), data.draw(st.integers(0, 4)))] * data.draw(st.integers(0, 1))
    found = front(space, score, cost, budgets)
    assert {(each.loss, each.cost) for each in found} == brute_front(space, score, cost, budgets)
    assert len({(each.loss, each.cost) for each in found}) == len(found)
    for each in found:
        assert space.holds(each.letters)
        assert (loss_of(score, each.letters), cost.costs.of(space, each.letters)) == (each.loss, each.cost)


@settings(max_examples=30)
@given(space=spaces(), data=st.data())
def test_macs_add_up_to_those_of_the_closed_form(space, data):
    letters = "".join(data.draw(st.sampled_from(sorted(space.spec.mixers))) for _ in space.places)
    spec = space.spec.with_pattern(space.pattern(letters))
    assert {bridge for bridge in space.spec.bridges if space.fits(bridge, letters)} == set(spec.bridges)
    whole = sum(piece.terms.total_macs for piece in spec_terms(spec, SMALL.height, SMALL.width))
    assert macs(space, SMALL, batch=3).of(space, letters) == 3 * whole


def test_scores_of_patterns_that_can_be_counted_by_hand():
    run = LongestRun(lambda letter: letter == "S")
    assert [loss_of(run, letters) for letters in ("LLLL", "SLLL", "LLSL", "SSSS", "LSLL")] == [4, 3, 2, 0, 2]
    space = Space(replace(SOLA_T, pattern="L|L|S|L", bridges=()))
    # every linear layer reaches a tenth of the image, two a tenth times √2
    variance = 0.1**2 / (2 * log(100))
    assert horizon(variance) == pytest.approx(0.1)
    variances = {(index, letter): inf if letter == "S" else variance for index in range(4) for letter in "LS"}
    score = mean_reach(space, variances)
    pairs_missing = [0.9, 0.9, 1 - 0.1 * sqrt(2), 0.9]
    assert loss_of(score, "LLSL") == pytest.approx(UNIT * sum(pairs_missing))
    assert score.value(loss_of(score, "LLSL")) == pytest.approx(1 - sum(pairs_missing) / 10)
    assert score.value(loss_of(score, "SSSS")) == 1


def test_sola_b_is_searched_by_few_beginnings(monkeypatch):
    """22 layers, 4,194,304 patterns; the beginnings of a five-hundredth as many are looked at, in 0.05 s."""
    merged, looked_at = search._merged, []

    def counted(entries):
        looked_at.append(len(entries))
        return merged(entries)

    monkeypatch.setattr(search, "_merged", counted)
    spec = get_spec("sola_b")
    judge = Judge(
        Question(spec, Resolution(1024, 1024), score="horizon", decay_per="token", budgets=Budgets(softmax=6))
    )
    found = judge.search()
    assert judge.space.size == 2**22
    assert sum(looked_at) < 2**22 / 100
    assert all(option.within and option.softmax <= 6 for option in found)
    costs, reaches = [option.macs for option in found], [option.score for option in found]
    assert costs == sorted(costs)
    assert reaches == sorted(reaches)
    # as far as the paper's pattern with as many softmax layers, at no more than its cost
    own = judge.option(judge.space.own_letters)
    assert max(option.score for option in found if option.macs <= own.macs) >= own.score


# time enough on any machine; few_rounds() ends it early
BUDGET_S = 1000.0


def few_rounds(patch):
    """End timing by number, so that no result depends on how busy the machine is."""
    patch.setattr(block_times, "MOST_ROUNDS", 4)
    patch.setattr(latency, "MOST_WARMUP_RUNS", 2)
    patch.setattr(latency, "FEWEST_SAMPLES", 2)
    patch.setattr(latency, "MOST_SAMPLES", 3)


@pytest.fixture(scope="module")
def measured():
    """A placement of a tiny backbone, measured for moments."""
    options = {"settings": Settings(threads=1), "budgets": Budgets(latency_s=10.0), "swaps": ["3.1=S"]}
    with pytest.MonkeyPatch.context() as patch:
        few_rounds(patch)
        return sola_profile.place(TINY, 64, budget_s=BUDGET_S, **options)


def test_latencies_are_sums_of_measured_layers(measured):
    found = measured
    times = {name: round(1e9 * latency.median_s) for name, latency in found.parts.items()}
    shared = sum(times[name] for name in ("embedding", "merging 2", "merging 3", "merging 4", "head"))
    own = shared + times["stage 1 L"] + times["stage 2 L"] + 2 * times["stage 3 L"] + times["stage 3 S"]
    own += times["stage 4 S"] + times["1.1->3.3"]
    assert round(1e9 * found.own.latency_s) == own
    assert found.own.interval_s.low <= found.own.latency_s <= found.own.interval_s.high
    assert found.cost == "latency_ns"
    assert {each.option.pattern for each in found.confirmations} >= {found.own.pattern, found.chosen.pattern}
    assert all(each.residual is not None for each in found.confirmations)
    (swap,) = found.swaps
    assert swap.option.pattern == "L|L|SLS|S"
    assert swap.option.macs == sum(
        piece.terms.total_macs for piece in spec_terms(TINY.with_pattern("L|L|SLS|S"), 64, 64)
    )
    assert "Predicted from layers, and measured as a whole" in found._repr_html_()


def test_the_page_says_how_far_sums_of_layers_can_be_trusted(measured):
    def measured_as(confirmation, residual):
        seconds = (1 + residual) * confirmation.option.latency_s
        latency = replace(confirmation.latency, median_s=seconds)
        return replace(confirmation, latency=latency)

    first, second = measured.confirmations[:2]
    both = (measured_as(first, 0.2), measured_as(second, -0.25))
    (sentence,) = residual_sentences(replace(measured, confirmations=both))
    assert "differ by -25.0 % to +20.0 % from the sums of their layers" in sentence
    # 1.2 / 0.75
    assert "latencies are within 60.0 % of each other can't be told apart" in sentence
    assert not list(residual_sentences(replace(measured, confirmations=both[:1])))
    assert "front has 1 point of all" in next(sentences(replace(measured, front=measured.front[:1])))


def test_a_machine_predicts_the_layers_and_their_sums_are_whole_models():
    machine = find_machine("h200", "float32")
    found = sola_profile.place(TINY, 64, machine=machine, budgets=Budgets(latency_s=1.0))
    assert found.cost == "latency_ns"
    assert not found.confirmations
    assert any("not confirmed by whole models" in remark for remark in found.remarks)
    assert "H200" in found._repr_html_()
    for option in (found.own, found.front[0]):
        source = ModelSource.of(TINY.with_pattern(option.pattern))
        shape, size = source.default_input, Resolution(64, 64)
        recording = record_at(source, shape, "float32", size, device_type=machine.device_type)
        assert option.latency_s == pytest.approx(predict_times(recording, machine).total.middle, rel=0.03)
    with pytest.raises(ValueError, match="nothing is measured for the machine"):
        sola_profile.place(TINY, 64, machine=machine, budget_s=1.0)


def test_the_chart_is_a_vega_lite_spec_and_the_json_has_everything(measured):
    found = measured
    chart = placement_chart(found)
    altair.LayerChart.from_dict(chart, validate=True)
    document = conforming("placement", found.json_text())
    assert [option["pattern"] for option in document["front"]] == [option.pattern for option in found.front]
    assert document["confirmations"][0]["measured"]["samples_s"]


def test_a_layer_without_a_time_is_left_out_and_named(monkeypatch):
    few_rounds(monkeypatch)
    monkeypatch.setattr(block_times.PartRace, "_estimate_s", lambda self, part: BUDGET_S if part == (1, "S") else 0.0)
    found = sola_profile.place(TINY, 32, budget_s=BUDGET_S, settings=Settings(threads=1))
    assert any(remark.startswith("stage 1 S has no measured time") for remark in found.remarks)
    assert all("S" not in option.pattern.split("|")[0] for option in found.front)
    assert next(option for option in found.references if "softmax" in option.names).latency_s is None


def test_an_interruption_keeps_what_is_known(monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt
        yield

    few_rounds(monkeypatch)
    monkeypatch.setattr(confirming.Confirming, "run", interrupt)
    found = sola_profile.place(TINY, 32, budget_s=BUDGET_S, settings=Settings(threads=1))
    assert found.interrupted
    assert found.cost == "latency_ns"
    assert found.front
    assert found.parts
    monkeypatch.setattr(block_times.PartRace, "run", interrupt)
    found = sola_profile.place(TINY, 32, budget_s=BUDGET_S, budgets=Budgets(latency_s=1.0))
    assert (found.interrupted, found.cost) == (True, "macs")
    assert any("the limit of latency is not kept" in remark for remark in found.remarks)


def test_memory_bans_layers_and_drops_patterns(monkeypatch):
    peaks = Placing._peak

    def peak(self, pattern):
        found = peaks(self, "L|L|L|L" if pattern.startswith("L") else "S|L|L|L")
        softmax = pattern.count("S")
        return replace(found, step_bytes=softmax * 2**20 + (2**30 if pattern.startswith("S") else 0))

    monkeypatch.setattr(Placing, "_peak", peak)
    spec = BackboneSpec("tiny", (32, 32, 64, 64), "L|L|L|L")
    question = Question(spec, SMALL, budgets=Budgets(memory_bytes=2**27))
    placing_ = Placing(question)
    list(placing_.run())
    found = placing_.result()
    assert any(remark.startswith("stage 1 S needs 1,0") for remark in found.remarks)
    assert found.chosen.pattern == "L|S|L|S"
    tight = found.own.memory.total_bytes + 2**20
    placing_ = Placing(replace(question, budgets=Budgets(memory_bytes=tight)))
    list(placing_.run())
    found = placing_.result()
    assert any("Dropped from the front" in remark for remark in found.remarks)
    assert found.chosen.softmax == 1


def test_accuracies_and_receptive_fields_make_fronts_of_what_is_known(tmp_path):
    found = sola_profile.place("sola_t", budget_s=None, score="accuracy")
    assert found.chosen.pattern == "LL|LL|LLSLLS|LL"
    assert [option.score for option in found.front] == [87.53, 87.62, 87.77, 88.06, 88.18, 88.53]
    assert any("standard error" in remark for remark in found.remarks)
    table = tmp_path / "mine.csv"
    for text, sentence in (
        ("patern,accuracy\nL,1\n", "pattern is missing; did you mean 'patern'?"),
        ("pattern,accuracy\nLL|LL|LL|LL,1\n", "line 2: pattern: stage 3 has 2 layers"),
        ("pattern,accuracy\nLL|LL|LLLLLL|LL,x\n", "line 2: could not convert"),
        ("pattern,accuracy\nLL|LL|LLLLLL|LL,nan\n", "line 2: accuracy: expected a number, got nan"),
        ("pattern,accuracy\nLL|LL|LLLLLL|LL\n", "line 2: accuracy: expected a number, got nothing"),
        ("pattern,accuracy\nLL|LL|LLLLLL|LL,1\nL*2|LL|L*6|LL,2\n", "line 3: L*2|LL|L*6|LL stands there twice"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=re.escape(sentence)):
            sola_profile.place("sola_t", budget_s=None, score="accuracy", table=table)
    spec = BackboneSpec("tiny", (32, 32, 64, 64), "L|L|L|L")
    found = sola_profile.place(spec, 64, budget_s=None, score="erf", stages=(3, 4))
    assert found.score.listed
    own = effective_area(spec, Resolution(64, 64))
    assert found.own.score == own
    assert 0 < own <= 1


def test_budgets_that_nothing_keeps_leave_no_choice():
    found = sola_profile.place(TINY, 32, budgets=Budgets(macs=1))
    assert (found.front, found.chosen, found.model) == ((), None, None)
    assert placement_chart(found) is None
    assert "No pattern keeps to the budgets." in found._repr_html_()
    assert conforming("placement", found.json_text())["chosen"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--score", "runn"), "did you mean 'run'?"),
        (("--cost", "latencies"), "did you mean 'latency'?"),
        (("--swap", "3.9=S"), "has no layer 3.9"),
        (("--swap", "3.4"), "expected stage.layer=letter such as 3.4=S, got '3.4'"),
        (("--swap", "3.4=s"), "'s' names no mixer; expected one of L, S"),
        (("--softmax", "-1"), "softmax: expected at least 0, got -1"),
        (("--max-gmacs", "inf"), "expected a finite number above 0, got inf"),
        (("--max-latency", "5"), "expected a time such as 50ms or 1.5s, got '5'"),
        (("--max-latency", "5ms", "--no-measure"), "--no-measure excludes --max-latency"),
        (("--max-gmacs", "0"), "expected a finite number above 0, got 0"),
        (("--max-memory", "big"), "expected a memory such as 8GiB"),
        (("--stages", "5"), "expected stages from 1 to 4 such as 3,4, got '5'"),
        (("--table", "x.csv"), "--table belongs to --score accuracy, got run"),
        (("--score", "accuracy", "--table", "no.csv"), "can't read no.csv"),
        (("--decay-per", "token"), "--decay-per belongs to --score horizon, got run"),
        (("--model", "timm:resnet18"), "expected a Backbone of sola_vision"),
        (("--res", "0"), "a side has 1 to 65,536 pixels"),
    ],
)
def test_bad_use_is_explained(sola_profile, arguments, sentence):
    code, _, err = sola_profile("place", "--model", "sola_t", *arguments)
    assert code == 2
    assert sentence in " ".join(err.replace("│", " ").split())


def test_the_command_writes_what_it_found(sola_profile, tmp_path, monkeypatch):
    monkeypatch.setattr(placing, "MOST_SHOWN", 4)
    out = tmp_path / "out"
    code, printed, err = sola_profile(
        *("place", "--model", "sola_t[LL|LL|SSSSSS|SS]", "--no-measure", "--softmax", "3", "--swap", "3.4=L"),
        *("--stages", "3,4", "--out", str(out), "--json", str(tmp_path / "x.json")),
    )
    assert code == 0
    assert "searching 256 patterns" in err
    document = conforming("placement", (tmp_path / "x.json").read_text())
    chosen = document["chosen"]["pattern"]
    assert f"sola-profile --model 'sola_t[{chosen}]'" in printed
    assert f'sola_vision.create_model("sola_t", pattern="{chosen}")' in printed
    assert document["own"]["names"] == ["given", "llss"]
    page = (out / "README.md").read_text()
    assert "![Reach against cost](placement.svg)" in page
    assert "LL\\|LL\\|SSSLSS\\|SS" in page
    assert (out / "placement.svg").read_text().startswith("<svg")
