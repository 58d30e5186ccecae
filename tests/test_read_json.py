"""Files of results and of machines that are damaged: each is refused by name, or as good as a whole one."""

import copy
import json

import pytest
from profiles import sample_profile

from sola_profile import machine_store
from sola_profile.comparison import Gates, compare
from sola_profile.machine_store import find_machine, read_machine
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


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("surfaces",), {}, "surfaces: expected 'memory traffic' among them, got none"),
        (("surfaces", "products"), {"unit": "FLOP/s"}, "field 'axes' is missing"),
        (
            ("surfaces", "products", "unit"),
            "miles",
            "surfaces\\['products'\\]: unit: expected one of FLOP/s, .*, got 'miles'",
        ),
        (("surfaces", "products", "axes"), {"rows": [2, 1]}, "axes\\['rows'\\]: expected rising numbers above 0, got"),
        (
            ("surfaces", "products", "axes"),
            {"rows": [1, 2]},
            "rates: expected 2, one for every point of the axes, got 1",
        ),
        (("surfaces", "products", "rates"), [[0, 0, 0]], "rates: expected low, middle and high above 0, got"),
        (("surfaces", "products", "rates"), [[3, 2, 1]], "rates: expected low, middle and high above 0, got"),
        (("surfaces", "products", "rates"), [[1, None, 2]], "rates\\[0\\]\\[1\\]: expected a number, got None"),
        (("surfaces", "products", "rates"), [[1, 2]], "rates\\[0\\]: expected 3 entries"),
        (("fingerprint",), {}, "fingerprint: expected a list of sources where nothing was measured"),
        (("load_1min",), None, "load_1min: expected a number, got None"),
        (("threads",), GONE, "field 'threads' is missing"),
    ],
)
def test_what_is_wrong_with_a_machine_is_named(tmp_path, path, value, sentence):
    document = json.loads(machine_store.json_text(find_machine("h100", "float32")))
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(changed(document, path, value)))
    with pytest.raises(ValueError, match=rf"machine.json is no machine: .*{sentence}"):
        read_machine(file)


def test_a_machine_with_more_fields_than_are_known_is_read(tmp_path):
    machine = find_machine("h100", "float32")
    document = json.loads(machine_store.json_text(machine)) | {"colour": "green"}
    document["surfaces"]["products"]["colour"] = "green"
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(document))
    assert read_machine(file).rate("products", {}) == machine.rate("products", {})
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"machine.json is no JSON: "):
        read_machine(file)
