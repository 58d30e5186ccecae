"""Measured peak memory: what PyTorch's own allocators handed out during one step."""

from __future__ import annotations

import gc
import os

import torch
from torch.profiler import ProfilerActivity, profile

from sola_profile.workload import Step


def measure_peak_bytes(step: Step, device: torch.device) -> int:
    """Peak of the bytes that one step allocates, on top of what was there before it.

    The step should have run once, so that what it keeps for later steps is not counted.
    """
    gc.collect()
    return _cuda_peak_bytes(step, device) if device.type == "cuda" else _cpu_peak_bytes(step)


def _cuda_peak_bytes(step: Step, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak_bytes(step: Step) -> int:
    # kineto greets on stderr at every start; this is read when its first session begins
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as session:
        step()
    # the running total of all allocations (+) and releases (−) in order of time; an allocator that hands blocks out
    # from several threads reports each from the thread that asked
    events = [event for event in session.profiler.kineto_results.events() if event.name() == "[memory]"]
    live_bytes = peak_bytes = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live_bytes += event.nbytes()
        peak_bytes = max(peak_bytes, live_bytes)
    return peak_bytes
