"""Every link between the pages of the documentation leads somewhere, and tables in prose agree with the code."""

import re
from pathlib import Path

import pytest

from sola_vision.train import proxy_config
from sola_vision.train.tasks import read_task

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("task", ["match", "count", "texture"])
def test_the_chances_of_the_experiment_are_those_of_its_tasks(task: str) -> None:
    config = proxy_config(task, "LLSLLS")
    chance = 1 / read_task(config.data.removeprefix("task:"), config.size).classes
    row = re.search(rf"^\| `{task}` \|.*\| (.*) \|$", (ROOT / "docs/experiments.md").read_text(), re.MULTILINE)
    assert row is not None
    assert row[1] == f"{chance:.1%}".replace("%", " %")
