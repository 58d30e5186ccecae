"""Every schema is one, refuses what it doesn't know, and describes the committed reports; commands' tests check the rest."""

import json
from copy import deepcopy
from pathlib import Path

import jsonschema
import pytest
from schemas import FOLDER, conforming, schema

from sola_profile.machine_store import find_machine, json_text

REPORTS = FOLDER.parent / "reports"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# by the name of the file
SCHEMA_OF = {"result": "profile", "kernels-cpu": "kernels", "kernels-h200": "kernels-cuda"}


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one_and_says_what_it_is_of(name: str) -> None:
    found = schema(name)
    jsonschema.Draft202012Validator.check_schema(found)
    version = found["properties"]["schema_version"]["const"]
    assert found["title"].startswith("sola-profile ")
    assert found["title"].endswith(f", schema_version {version}")


@pytest.mark.parametrize("path", sorted(REPORTS.rglob("*.json")), ids=lambda path: str(path.relative_to(REPORTS)))
def test_committed_reports_are_what_their_schema_says(path: Path) -> None:
    name = SCHEMA_OF.get(path.stem, path.stem)
    document = conforming(name, path.read_text(encoding="utf-8"))
    found = schema(name)
    for key in found["required"]:
        other = deepcopy(document)
        del other[key]
        with pytest.raises(jsonschema.ValidationError):
            conforming(name, json.dumps(other))


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_leads_somewhere_and_every_definition_is_used(name: str) -> None:
    found = schema(name)
    text = json.dumps(found)
    for definition in found.get("$defs", {}):
        assert f'"#/$defs/{definition}"' in text
    assert text.count('"$ref"') == sum(text.count(f'"#/$defs/{definition}"') for definition in found.get("$defs", {}))


@pytest.mark.parametrize("machine", ["h200", "l4"])
def test_ceilings_are_what_their_schema_says(machine: str) -> None:
    conforming("machine", json_text(find_machine(machine, "bfloat16")))
