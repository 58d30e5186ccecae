"""A profile as a folder: a Markdown page with its charts beside it, and one HTML file that holds everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sola_profile.report import html
from sola_profile.report.charts import CHARTS, specs
from sola_profile.report.markdown import page_text
from sola_profile.report.svg import DrawingError, Renderer
from sola_profile.result import Profile

PAGE = "README.md"


def write_folder(profile: Profile, folder: Path, renderer: Renderer, others: Sequence[str] = ()) -> str:
    """Write ``README.md``, its SVG charts and ``report.html``; ``others`` are files that the page should name.

    Returns why there are no charts, or an empty string. Charts of an earlier run that this one doesn't have are
    removed, so that page and charts always belong together.
    """
    problem, charts = "", {}
    try:
        charts = renderer.draw(specs(profile))
    except DrawingError as error:
        problem = str(error)
    for name in CHARTS:
        if name in charts:
            (folder / name).write_text(charts[name], encoding="utf-8")
        else:
            (folder / name).unlink(missing_ok=True)
    (folder / html.PAGE).write_text(html.html_text(profile, charts, renderer.bundle), encoding="utf-8")
    (folder / PAGE).write_text(page_text(profile, sorted(charts), [*others, html.PAGE]), encoding="utf-8")
    return problem
