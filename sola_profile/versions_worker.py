"""Times one model with the ``sola_vision`` of the interpreter that runs this file: a program of ``versions``, not a module.

It reads requests from standard input and answers on standard output, one JSON object a line. The first line is
``{"model", "threads"}``; then ``{"do": "prepare", "size", "sized", "input"}`` builds and runs the model once, and
``{"do": "run", "size"}`` runs it once more; both answer with seconds. It uses as little as it can of the version at hand.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

SEED = 0


def main() -> None:
    """Answer until there are no more requests."""
    answers, sys.stdout = sys.stdout, sys.stderr
    first = json.loads(sys.stdin.readline())
    import torch

    import sola_vision
    from sola_profile.source import read_source

    if first["threads"] is not None:
        torch.set_num_threads(first["threads"])
    source = read_source(first["model"])
    # as `measure.allocator` has it, which older versions lack
    torch.empty(2**25 - 2**12, dtype=torch.uint8)
    steps: dict[str, Callable[[], None]] = {}
    models: dict[str, Any] = {}

    def reply(answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    reply({"loaded": sola_vision.__file__})
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            steps[request["size"]] = _step(source, models, request)
        start = time.perf_counter()
        steps[request["size"]]()
        reply({"time_s": time.perf_counter() - start})


def _step(source: Any, models: dict[str, Any], request: dict[str, Any]) -> Callable[[], None]:
    """A forward pass at one size; models that are built for a size are built anew for each."""
    import torch

    from sola_profile.case import Resolution
    from sola_profile.source import InputShape
    from sola_profile.workload import inference_step

    resolution = Resolution.parse(request["size"])
    key = request["size"] if request["sized"] else ""
    if key not in models:
        torch.manual_seed(SEED)
        models[key] = source.build(resolution if request["sized"] else None).eval()
    shape = InputShape.parse(request["input"]).at(resolution.height, resolution.width)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    step: Callable[[], None] = inference_step(models[key], image)
    return step


if __name__ == "__main__":
    main()
