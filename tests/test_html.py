"""The HTML report: complete without a network, and alive in a browser where one is installed."""

import re
import shutil
from dataclasses import replace

import pytest
from profiles import sample_profile

from sola_profile.report import html
from sola_profile.report.charts import specs
from sola_profile.report.folder import write_folder
from sola_profile.report.numbers import duration, whole
from sola_profile.report.svg import DrawingError, Renderer
from sola_profile.report.tables import pieces_table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with Renderer(with_bundle=True) as renderer:
        assert write_folder(sample_profile(), folder, renderer) == ""
    return folder / html.PAGE


def test_the_file_loads_nothing_and_ends_no_script_early(report):
    text = report.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
    assert not re.search(r"@import|url\(\s*['\"]?https?:", text)
    assert text.count("<script") == text.count("</script") == 3
    assert "report.html" in (report.parent / "README.md").read_text(encoding="utf-8")


def test_every_piece_at_every_size_is_on_the_page(report):
    profile = sample_profile()
    text = report.read_text(encoding="utf-8")
    table = pieces_table(profile)
    assert len(table.rows) == sum(len(row.cost.pieces) for row in profile.model.rows)
    for row in profile.model.rows:
        assert sum(piece.macs for piece in row.cost.pieces) == row.cost.macs
        assert f"<td>{whole(max(piece.macs for piece in row.cost.pieces))}</td>" in text


def test_colours_of_a_chart_follow_the_page(report):
    del report
    drawn = specs(sample_profile())
    for name, spec in drawn.items():
        text = str(html.themed(spec))
        assert not {"'#000000'", "'#222222'", "'#E3E5E8'"} & set(re.findall(r"'#\w{6}'", text)), name
        assert "var(--ink)" in text
    # a name inside a bar stays white on its colour
    assert "'white'" in str(html.themed(drawn["shares.svg"]))


def test_without_a_renderer_the_tables_are_there_all_the_same(tmp_path, monkeypatch):
    def fails(*_):
        raise DrawingError("no memory")

    renderer = Renderer()
    monkeypatch.setattr(renderer, "draw", fails)
    assert write_folder(sample_profile(), tmp_path, renderer) == "no memory"
    text = (tmp_path / html.PAGE).read_text(encoding="utf-8")
    assert 'class="chart"' not in text
    assert "Piece by piece" in text


def test_what_the_user_typed_is_text_not_markup():
    typed = replace(sample_profile(), command="sola-profile --model '<b>&'")
    assert "sola-profile --model &#39;&lt;b&gt;&amp;&#39;" in html.html_text(typed, {}, "")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here; Debian has it in the package chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, report):
    complaints = []
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 800}, color_scheme="dark")
    found = context.new_page()
    found.on("console", lambda message: complaints.append(message.text))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("requestfailed", lambda request: complaints.append(request.url))
    found.goto(report.as_uri())
    found.wait_for_function("[...document.querySelectorAll('.chart')].every(chart => chart.dataset.ready)")
    yield found
    assert complaints == []
    context.close()


def test_in_a_browser_it_fits_a_phone_and_draws_every_chart(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".chart svg").count() == len(specs(sample_profile()))


def test_in_a_browser_hovering_a_point_shows_its_value(page):
    # the last to be drawn, with none above it
    page.locator('.chart[data-chart="latency.svg"] svg path[aria-roledescription="point"]').last.hover()
    tooltip = page.locator("#vg-tooltip-element")
    tooltip.wait_for(state="visible")
    latency = sample_profile().contenders[-1].rows[-1].latency
    assert duration(latency.median_s) in tooltip.inner_text()


def test_in_a_browser_a_series_can_be_hidden(page):
    points = page.locator('.chart[data-chart="flops.svg"] svg path[aria-roledescription="point"]')
    before = points.count()
    page.locator('[data-series="all softmax"]').first.click()
    page.wait_for_function(
        "before => document.querySelectorAll('.chart[data-chart=\"flops.svg\"] path[aria-roledescription=point]')"
        ".length < before",
        arg=before,
    )
    assert points.count() == before * 2 // 3


def test_in_a_browser_tables_sort_by_value_and_show_one_size(page):
    pieces = page.locator("#pieces table")
    size = str(sample_profile().model.rows[-1].resolution)
    visible = pieces.locator("tbody tr:visible td:first-child").all_inner_texts()
    assert set(visible) == {size}
    for expected in (False, True):
        pieces.get_by_role("button", name="MACs").click()
        shown = pieces.locator("tbody tr:visible td:nth-child(4)").all_inner_texts()
        numbers = [int(cell.replace(",", "")) for cell in shown]
        assert numbers == sorted(numbers, reverse=expected)
    latency = page.locator("#latency table")
    latency.get_by_role("button", name="Latency").click()
    assert latency.locator("tbody td:first-child").all_inner_texts() == ["64", "128", "512x256"]
