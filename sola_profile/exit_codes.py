"""What the command's exit codes say. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """How a run of ``sola-profile`` ended. Where more than one holds, the first of 130, 1, 2, 3, 5, 4 is given."""

    FINE = 0
    INTERNAL = 1
    USAGE = 2
    REGRESSION = 3
    UNSTABLE = 4
    NOTHING_FITTED = 5
    INTERRUPTED = 130


MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.FINE: "fine",
    ExitCode.INTERNAL: "an internal error, with its traceback; a counter that selftest distrusts; a mixing matrix that differs from its operator; a closed pipe, a full disk",
    ExitCode.USAGE: "bad use, or something that --strict objects to",
    ExitCode.REGRESSION: "a figure is worse than that of the baseline",
    ExitCode.UNSTABLE: "timing too unstable for the verdict that --max-regression or --require-stable asked for; ceilings that machine --check doubts",
    ExitCode.NOTHING_FITTED: "no size of the model fitted in memory; an answer of fit that --confirm ran and that didn't",
    ExitCode.INTERRUPTED: "interrupted; what was finished is written",
}
