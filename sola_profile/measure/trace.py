"""One step as a Chrome trace, for Perfetto (ui.perfetto.dev) or chrome://tracing: modules around their operators."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sola_profile.files import is_stream
from sola_profile.pieces import called_modules, piece_modules
from sola_profile.workload import Step, Workload
from sola_vision.files import followed


def write_trace(workload: Workload, step: Step, path: Path) -> None:
    """Run a warm step once more and write what ran when; gzipped where the name ends in ``.gz``.

    Modules are spans that bear their path, with the kind of layer where a backbone's piece begins. The profiler costs
    time of its own, some microseconds a call, so the trace shows an order and proportions; latencies are measured
    without it.
    """
    # kineto greets on stderr at every start; this is read when its first session begins
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [ProfilerActivity.CPU]
    if workload.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with _spans(workload), profile(activities=activities, record_shapes=True, profile_memory=True) as session:
        step()
    path, stream = followed(path), is_stream(path)
    # beside the file that it becomes, so that it can be moved there
    with tempfile.TemporaryDirectory(dir=None if stream else path.parent) as folder:
        plain = Path(folder, "trace.json")
        session.export_chrome_trace(str(plain))
        if path.suffix == ".gz":
            packed = Path(folder, "trace.json.gz")
            with plain.open("rb") as source, gzip.open(packed, "wb") as target:
                shutil.copyfileobj(source, target)
            plain = packed
        if stream:
            path.write_bytes(plain.read_bytes())
        else:
            plain.replace(path)


@contextmanager
def _spans(workload: Workload) -> Iterator[None]:
    """A span around every call of a module."""
    kinds = {piece.path: piece.name for piece in piece_modules(workload.source.spec)}
    open_spans: dict[int, list[Any]] = {}

    def begin(module: nn.Module, _inputs: Any) -> None:
        span = torch.profiler.record_function(names[id(module)])
        span.__enter__()
        open_spans.setdefault(id(module), []).append(span)

    def end(module: nn.Module, _inputs: Any, _output: Any) -> None:
        open_spans[id(module)].pop().__exit__(None, None, None)

    names, handles = {}, []
    for path, module in called_modules(workload.model):
        shown = f"{path} ({type(module).__name__})" if path else type(module).__name__
        names[id(module)] = f"{kinds[path]}: {shown}" if path in kinds else shown
        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
