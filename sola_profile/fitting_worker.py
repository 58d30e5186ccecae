"""The process that runs a model under a memory limit: a request on standard input, a ``Confirmation`` on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from sola_profile.case import Resolution, Settings
from sola_profile.measuring import is_out_of_memory
from sola_profile.source import InputShape, ModelSource, read_source
from sola_profile.workload import build, cpu_threads

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# an optimizer has its state, and libraries their code in memory, after the first
STEPS = 2
# torch gives each thread 32,768 or more
NUMBERS_FOR_ALL_THREADS = 2**22
# of heaps and stacks, mapped and never touched
UNTOUCHED_BYTES = 2**26


def main() -> None:
    """Load everything, note what the process holds, set a limit that spares the machine, run, and see what was taken."""
    request = json.load(sys.stdin)
    settings, limit_bytes = Settings(**request["settings"]), request["limit_bytes"]
    resolution = Resolution.parse(request["resolution"])
    shape = None if request["shape"] is None else InputShape.parse(request["shape"])
    with cpu_threads(settings.threads):
        source = read_source(request["model"])
        # imports of a model, libraries that load late and stacks of threads are not its memory
        build(source, settings, "meta", shape=shape)
        small = torch.rand(64, 64)
        (small @ small).softmax(-1)
        torch.zeros(NUMBERS_FOR_ALL_THREADS, dtype=torch.uint8).add_(1)
        _forget_high_water()
        before = _account()
        _limit_heap(before, limit_bytes + UNTOUCHED_BYTES)
        try:
            _run(source, settings, shape, resolution)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            json.dump({"ran": False, "why": "out of memory"}, sys.stdout)
            return
    grown = grown_bytes(before, _account())
    within = grown is None or grown <= limit_bytes
    json.dump({"ran": within, "peak_bytes": grown, "why": "" if within else "took more than the limit"}, sys.stdout)


def _run(source: ModelSource, settings: Settings, shape: InputShape | None, resolution: Resolution) -> None:
    """Steps of the model, built for this size where it takes no other."""

    def run(built_for: Resolution | None) -> None:
        workload = build(source, settings, shape=shape, resolution=built_for)
        step = workload.step(workload.image(resolution))
        for _ in range(STEPS):
            step()

    try:
        run(None)
    except (ValueError, AssertionError):
        pass
    else:
        return
    # only here, where the error has let go of the first model
    run(resolution)


def grown_bytes(before: Mapping[str, int], after: Mapping[str, int]) -> int | None:
    """By how much memory that no file backs grew at most, of two accounts in KiB; None where the system doesn't tell.

    The high-water mark also counts pages of library files, which other processes share and the system may drop; they come
    with the first use of their code and stay.
    """
    if "VmHWM" not in after or "RssFile" not in after:
        return None
    return 1024 * ((after["VmHWM"] - after["RssFile"]) - (before["VmRSS"] - before["RssFile"]))


def _forget_high_water() -> None:
    """Let the high-water mark begin at what is held now, where the system can: loading took more for a moment."""
    with suppress(OSError):
        CLEAR_REFS.write_text("5", encoding="ascii")


def _limit_heap(before: Mapping[str, int], limit_bytes: int) -> None:
    """Stop where private writable memory, touched or not, grows by more; does nothing where the system can't."""
    if "VmData" not in before:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * before["VmData"] + limit_bytes, hard))


def _account() -> dict[str, int]:
    """Linux's account of this process, in KiB; empty on other systems."""
    if not STATUS.exists():
        return {}
    lines = (line.split() for line in STATUS.read_text(encoding="ascii").splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) for name, value, _ in lines}


if __name__ == "__main__":
    main()
