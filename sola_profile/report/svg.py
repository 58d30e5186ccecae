"""Vega-Lite specs to SVG text, in a process of its own.

The renderer is a JavaScript engine that reserves gigabytes of address space when it starts and aborts where it can't,
under ``ulimit -v`` for instance. An abort over there costs a report its charts and nothing else. It also takes half a
second to start, so a ``Renderer`` is opened at the beginning of a command and waits.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# long enough for a slow machine; the work itself takes a second
TIMEOUT_S = 120

# one small chart first: the engine wakes up while the specs are still on their way
_PROGRAM = """
import json, sys, vl_convert
vl_convert.vegalite_to_svg({"data": {"values": []}, "mark": "point"})
bundle = vl_convert.javascript_bundle() if "bundle" in sys.argv else ""
drawn = {name: vl_convert.vegalite_to_svg(spec) for name, spec in json.load(sys.stdin).items()}
json.dump({"charts": drawn, "bundle": bundle}, sys.stdout)
"""


class DrawingError(RuntimeError):
    """The renderer failed; the message is what it said about memory, or its exit status."""


class Renderer:
    """A renderer that is starting up; use it once, as a context.

    ``bundle``: after drawing, the JavaScript that draws the same specs in a browser, where that was asked for.
    """

    def __init__(self, *, with_bundle: bool = False) -> None:
        self._arguments = ["bundle"] if with_bundle else []
        self.bundle = ""

    def __enter__(self) -> Renderer:
        command = [sys.executable, "-c", _PROGRAM, *self._arguments]
        pipe = subprocess.PIPE
        # a session of its own: Ctrl-C on the terminal is for the measurement, not for the charts of what is finished
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8", start_new_session=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def draw(self, specs: Mapping[str, Any]) -> dict[str, str]:
        """Name → SVG text, ending in a newline; raises ``DrawingError``."""
        try:
            out, err = self._process.communicate(json.dumps(specs), timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise DrawingError(f"the renderer took more than {TIMEOUT_S} s") from error
        if self._process.returncode != 0:
            said = [line.strip("# ") for line in err.splitlines() if "memory" in line.lower()]
            raise DrawingError(said[0] if said else f"the renderer left with exit status {self._process.returncode}")
        drawn = json.loads(out)
        self.bundle = drawn["bundle"]
        return {name: svg.rstrip("\n") + "\n" for name, svg in drawn["charts"].items()}
