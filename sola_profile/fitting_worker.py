"""The process that runs one step under a memory limit: a request on standard input, a ``Confirmation`` on standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from sola_profile.case import Resolution, Settings
from sola_profile.measuring import is_out_of_memory
from sola_profile.source import InputShape, read_source
from sola_profile.workload import build, cpu_threads

STATUS = Path("/proc/self/status")


def main() -> None:
    """Load everything, note what the process holds, set the limit, run."""
    request = json.load(sys.stdin)
    settings = Settings(**request["settings"])
    resolution = Resolution.parse(request["resolution"])
    shape = None if request["shape"] is None else InputShape.parse(request["shape"])
    with cpu_threads(settings.threads):
        source = read_source(request["model"])
        # the smallest step starts the threads and loads the libraries, which are not the step's memory
        small = torch.rand(64, 64)
        (small @ small).softmax(-1)
        before = _kibibytes("VmRSS")
        _limit_heap(request["limit_bytes"])
        try:
            try:
                workload = build(source, settings, shape=shape)
                workload.step(workload.image(resolution))()
            except (ValueError, AssertionError):
                workload = build(source, settings, shape=shape, resolution=resolution)
                workload.step(workload.image(resolution))()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            json.dump({"ran": False, "why": "out of memory"}, sys.stdout)
            return
    after = _kibibytes("VmHWM")
    peak = None if before is None or after is None else 1024 * (after - before)
    json.dump({"ran": True, "peak_bytes": peak}, sys.stdout)


def _limit_heap(limit_bytes: int) -> None:
    """Let private writable memory grow by so much; does nothing where the system can't."""
    held = _kibibytes("VmData")
    if held is None:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * held + limit_bytes, hard))


def _kibibytes(name: str) -> int | None:
    """A line of Linux's account of this process."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


if __name__ == "__main__":
    main()
