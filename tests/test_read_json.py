"""Result files that are damaged: each is refused by name, or compared like a whole one, and nothing in between."""

import copy
import json

import pytest
from profiles import sample_profile

from sola_profile.comparison import Gates, compare
from sola_profile.report.comparison import comparison_json, markdown_text
from sola_profile.report.json_file import json_text
from sola_profile.report.read_json import read_profile

GONE = object()
WRONG = (GONE, None, 0, "x", [])


@pytest.fixture(scope="module")
def document():
    return json.loads(json_text(sample_profile()))


def places(found, path=()):
    """Every field, of lists and of alike rows the first alone."""
    entries = found.items() if isinstance(found, dict) else enumerate(found[:1]) if isinstance(found, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(document, path, value):
    found = copy.deepcopy(document)
    *above, last = path
    place = found
    for key in above:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return found


def refused(whole, text):
    """Why a document can't be compared with a whole one; None where it can."""
    try:
        found = read_profile(text, "new.json")
        together = compare(("whole.json", whole), ("new.json", found), Gates())
    except ValueError as error:
        return str(error)
    comparison_json(together)
    markdown_text(together)
    return None


def test_any_field_that_is_damaged_is_refused_or_does_no_harm(document):
    small = changed(document, ("models",), document["models"][:1])
    small["models"][0]["rows"] = small["models"][0]["rows"][:1]
    whole = read_profile(json.dumps(small), "whole.json")
    for path in places(small):
        for value in WRONG:
            complaint = refused(whole, json.dumps(changed(small, path, value)))
            assert complaint is None or complaint.startswith(("new.json: ", "no size is in both")), path


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("models",), [], "models: expected the one with the role 'model' first, got none"),
        (("models", 0), GONE, "expected the one with the role 'model' first, got linear, softmax"),
        (("settings", "dtype"), GONE, "field 'dtype' is missing"),
        (("settings", "colour"), "red", "colour"),
        (("interrupted",), "no", "interrupted: expected true or false, got 'no'"),
        (
            ("models", 0, "rows", 0, "cost", "pieces", 0, "macs"),
            1.5,
            r"pieces\[0\].macs: expected a whole number, got 1.5",
        ),
        (("models", 0, "rows", 0, "moved_bytes"), 10**400, "moved_bytes: expected a whole number or null, got 1000"),
        (("models", 0, "rows", 0, "height"), True, "height: expected a whole number, got True"),
        (("models", 0, "rows", 0, "training_step_macs"), "7", "step_macs: expected a whole number or null, got '7'"),
        (("models", 0, "rows", 0, "latency", "median_s"), None, "latency.median_s: expected a number, got None"),
        (
            ("models", 0, "rows", 0, "latency", "median_s"),
            0,
            "sola_t at 64: median_s: expected more than 0 seconds, got 0",
        ),
        (("models", 0, "rows", 0, "latency", "median_s"), float("nan"), "JSON has no NaN"),
        (("models", 0, "rows", 0, "latency", "samples_s", 0), -1, "samples_s: expected more than 0 seconds, got -1"),
        (
            ("models", 0, "rows", 0, "latency", "samples_s"),
            [],
            "sola_t at 64: expected samples_s with a round for each",
        ),
        (("models", 0, "rows", 0, "missing"), {"reason": "bad luck"}, "reason: expected left out, .* got 'bad luck'"),
        (("models", 0, "spec", "mixers", "L"), "wkv(", "not a profile"),
    ],
)
def test_what_is_wrong_is_named(document, path, value, sentence):
    with pytest.raises(ValueError, match=rf"^new\.json: .*{sentence}"):
        read_profile(json.dumps(changed(document, path, value)), "new.json")


def test_text_without_end_is_no_profile():
    for text in ("[" * 100_000, "9" * 5000):
        with pytest.raises(ValueError, match=r"^new\.json: expected a profile as JSON, but it is none"):
            read_profile(text, "new.json")
