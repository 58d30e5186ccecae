"""What it runs on: a fingerprint of hardware and software that belongs to every measured number.

The name of the host is left out, so that reports can be published as they are.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from sola_vision.ops import build_info
from sola_vision.version import __version__


@dataclass(frozen=True)
class Environment:
    """Hardware, software and switches that a measurement depends on.

    ``load_1min``: runnable threads over the last minute when the run began, all users; above 0 something else was
    running. ``tf32``: whether CUDA products of float32 may round to TF32. ``kernels``: how the compiled operators
    were built and what they chose at load.
    """

    cpu: str
    cores: int
    logical_cores: int
    memory_bytes: int
    load_1min: float
    operating_system: str
    python: str
    torch: str
    sola_vision: str
    threads: int
    cpu_capability: str
    gpu: str | None
    cuda: str | None
    cudnn: int | None
    tf32: bool
    kernels: dict[str, str]


def environment() -> Environment:
    """The fingerprint of this machine now."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Environment(
        cpu=_cpu_name(),
        cores=psutil.cpu_count(logical=False) or 1,
        logical_cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        load_1min=round(psutil.getloadavg()[0], 2),
        operating_system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        sola_vision=__version__,
        threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        gpu=gpu,
        cuda=torch.version.cuda if gpu else None,
        cudnn=torch.backends.cudnn.version() if gpu else None,
        tf32=torch.backends.cuda.matmul.allow_tf32,
        kernels={key: str(value) for key, value in sorted(build_info().items())},
    )


def check_device(name: str) -> None:
    """Raise ``ValueError`` with what is there, unless PyTorch can run on this device."""
    kinds = ("cpu", "cuda")
    kind, _, index = name.partition(":")
    if kind not in kinds or (index and not index.isdigit()):
        hint = "; did you mean 'cuda'?" if kind.lower() in ("gpu", "nvidia", "cuda") else ""
        raise ValueError(f"expected cpu, cuda or cuda:N, got {name!r}{hint}")
    if kind == "cpu":
        if index not in ("", "0"):
            raise ValueError(f"there is one CPU device, cpu, got {name!r}")
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ValueError(f"{name!r} isn't there: this PyTorch ({torch.__version__}) sees no CUDA device; use cpu")
    if index and int(index) >= count:
        raise ValueError(f"{name!r} isn't there: the last device is cuda:{count - 1}")


def available_bytes(device: torch.device) -> int:
    """Memory that a step may still take: free memory of a GPU, else the least of free RAM and this process's limits."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free_bytes: int = psutil.virtual_memory().available
    return min([free_bytes, *_limits_left()])


def _limits_left() -> list[int]:
    """What the address-space limit and the control group leave, where there are such limits."""
    left = []
    if os.name == "posix":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            left.append(max(0, soft - psutil.Process().memory_info().vms))
    group_limit = _read_number("/sys/fs/cgroup/memory.max")
    if group_limit is not None:
        left.append(max(0, group_limit - _group_use()))
    return left


def _group_use() -> int:
    """Memory of the control group that can't be given back, unlike its page cache."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("anon "))


def _read_number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
