"""The processes of a run: one, or as many as ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class World:
    """The number of this process, how many there are, and its device."""

    rank: int
    size: int
    device: torch.device

    def share(self, first: int, count: int) -> range:
        """The part of this process in ``count`` images from ``first`` on, of which every process takes equally many."""
        part = count // self.size
        return range(first + self.rank * part, first + (self.rank + 1) * part)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes."""
        if self.size == 1:
            return model
        where = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=where)

    def total(self, values: list[float]) -> list[float]:
        """Sums over the processes, the same on each."""
        if self.size == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return [float(value) for value in sums.tolist()]


@contextmanager
def join(device: str) -> Iterator[World]:
    """Meet the other processes that ``torchrun`` started, over NCCL on GPUs and gloo elsewhere; alone without it.

    Raises ``ValueError`` when there is no such device.
    """
    where = _device(device)
    started = not dist.is_initialized()
    if started and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(0, 1, where)
        return
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(where)
    if started:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), where)
    finally:
        # a group of the caller's is the caller's to end
        if started:
            dist.destroy_process_group()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: PyTorch sees {torch.cuda.device_count() or 'no'} CUDA devices here, got {name!r}")
    return device
