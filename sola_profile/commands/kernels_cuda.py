"""``sola-profile kernels --device cuda``, and the same without click: ``python -m sola_profile.commands.kernels_cuda``.

A machine that is lent for minutes has torch and little else, so this needs nothing beside it.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sola_profile.files import replace_text

if TYPE_CHECKING:
    from sola_profile.kernel_cuda_result import CudaReport

COMMAND = "sola-profile kernels --device cuda"


def run(folder: Path, plan: str | None = None) -> None:
    """Measure every target and write ``kernels-<gpu>.md`` and ``.json``; ``plan``: name a device, measure nothing.

    With measured backends of softmax attention there is also ``kernels-<gpu>-routes.json``.
    """
    import torch

    from sola_profile.kernel_cuda import unmeasured
    from sola_profile.kernel_cuda_process import measure
    from sola_profile.kernel_targets import MODEL_TARGETS, feature_cases, route_cases, targets

    if plan is None and not torch.cuda.is_available():
        raise SystemExit("kernels: this PyTorch sees no CUDA device; --plan NAME writes the targets without one")
    folder.mkdir(parents=True, exist_ok=True)
    command = COMMAND + (f" --plan '{plan}'" if plan else "")
    everything = (targets(), MODEL_TARGETS, route_cases(), feature_cases())
    reports = [unmeasured(plan, *everything)] if plan else measure(*everything)
    begin = time.monotonic()
    try:
        for report in reports:
            path, measured, rows = _write_report(folder, report, command)
            print(f"{time.monotonic() - begin:5.0f} s: {measured} of {rows} rows in {path}", flush=True)
    except RuntimeError as error:
        raise SystemExit(f"kernels: {error}") from error


def _write_report(folder: Path, report: CudaReport, command: str) -> tuple[Path, int, int]:
    """Page, JSON and routes; returns the page's path, and how many rows were measured of how many there are."""
    from sola_profile.kernel_routes import fastest, routes_json
    from sola_profile.report.kernel_cuda import cuda_json, cuda_markdown

    path = folder / f"kernels-{slug(report.device)}.md"
    replace_text(path, cuda_markdown(report, command))
    replace_text(path.with_suffix(".json"), cuda_json(report))
    if any(map(fastest, report.routes)):
        replace_text(path.with_name(f"{path.stem}-routes.json"), routes_json(report))
    found = [row.timings for row in report.all_rows()]
    return path, sum(map(bool, found)), len(found)


def slug(device: str) -> str:
    """``h200`` for ``NVIDIA H200``: the last word with a digit, lower case."""
    words = [word for word in re.split(r"[^0-9A-Za-z]+", device) if re.search(r"\d", word) and not word.endswith("GB")]
    return (words[0] if words else re.sub(r"[^0-9A-Za-z]+", "-", device)).lower()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the CUDA kernels beside their peers.")
    parser.add_argument("--out", type=Path, default=Path("docs", "reports"), metavar="FOLDER")
    parser.add_argument("--plan", metavar="DEVICE", help="write the targets for a device that isn't here")
    options = parser.parse_args()
    run(options.out, options.plan)


if __name__ == "__main__":
    main()
