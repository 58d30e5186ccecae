"""A trace holds every module of the step, its operators inside it."""

import gzip
import json


def spans(path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    return [event for event in events if event.get("ph") == "X"]


def test_modules_are_spans_around_their_operators(sola_profile, tmp_path):
    path = tmp_path / "step.json.gz"
    code, out, _ = sola_profile("trace", "--model", "sola_t", "--res", "64", "--threads", "1", "--out", str(path))
    assert code == 0
    assert str(path) in out
    found = spans(path)
    by_name = {event["name"]: event for event in found}
    mixer = by_name["3.3 softmax: stages.2.blocks.2.mixer (SoftmaxAttention)"]
    inside = [
        event["name"]
        for event in found
        if mixer["ts"] <= event["ts"] and event["ts"] + event["dur"] <= mixer["ts"] + mixer["dur"]
    ]
    assert "sola::softmax_attention" in inside
    assert "sola::wkv" not in inside
    # the maps of a channel mix are in its operator, and a span of one would make a call of it
    assert sum(event["name"] == "sola::channel_mix" for event in found) == 12
    assert not any("channel_mix.key" in event["name"] for event in found)
    assert [file.name for file in tmp_path.iterdir()] == ["step.json.gz"]


def test_bad_use_is_found_before_anything_runs(sola_profile, tmp_path):
    code, _, err = sola_profile("trace", "--model", "sola_t", "--out", str(tmp_path / "no" / "t.json"))
    assert code == 2
    assert "can't write to" in err
    code, _, err = sola_profile("trace", "--model", "sola_t", "--input", "1x1xHxW", "--out", str(tmp_path / "t.json"))
    assert code == 2
    assert "sola_t takes 1x3xHxW, got 1x1xHxW" in err
    code, _, err = sola_profile("trace", "--model", "sola_t", "--out", "-")
    assert code == 2
    assert "expected a file, got '-'" in err
    code, _, err = sola_profile("trace", "--model", "sola_x")
    assert code == 2
    assert "did you mean 'sola_t'" in err
