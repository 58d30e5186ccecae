"""The README shows what the tools really print, and its example runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def _block(heading: str, kind: str = "") -> str:
    found = re.search(rf"{re.escape(heading)}.*?```{kind}\n(.*?)```", README, re.DOTALL)
    assert found is not None, heading
    return found[1]


def _cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


@pytest.fixture(scope="module")
def shown() -> list[str]:
    return [line.rstrip() for line in _block("<!-- profile -->").splitlines() if line.strip()]


def test_the_counted_part_is_what_the_command_prints(shown: list[str]) -> None:
    command = [sys.executable, "-m", "sola_profile", "--model", "sola_t", "--res", "224,512,1024"]
    # as many as the machine had that it was written on
    (threads,) = re.findall(r", (\d+) threads?, ", shown[0])
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": threads}
    run = subprocess.run(
        [*command, "--no-measure", "--no-report"], capture_output=True, text=True, check=True, env=environment
    )
    printed = [line.rstrip() for line in run.stdout.splitlines() if line.strip()]
    counted = shown[: shown.index("Measured latency")]
    assert len(counted) > 4
    assert counted == printed[: len(counted)]


def test_the_measured_part_is_that_of_the_committed_report(shown: list[str]) -> None:
    report = (ROOT / "docs/reports/sola_t/README.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if "|" in line]
    measured = [_cells(line) for line in shown[shown.index("Measured latency") + 1 :] if line.strip()[0].isdigit()]
    assert len(measured) == 3
    for cells in measured:
        assert any(row[: len(cells)] == cells for row in rows), cells


def test_the_example_runs() -> None:
    names: dict[str, object] = {}
    exec(_block("## In Python", "python"), names)
    assert names["scores"].shape == (1, 10)
    assert names["out"].shape == (1, 4096, 2, 32)


def test_installing_asks_for_what_the_build_needs() -> None:
    requires = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert requires is not None
    assert f"pip install {requires[1].replace(',', '')}\n" in _block("## Installing")


def test_the_file_tree_names_what_is_there() -> None:
    named = [line.split()[0] for line in _block("## Where things are").splitlines()]
    assert all((ROOT / name).exists() for name in named)
