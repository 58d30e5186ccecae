"""Measures this machine's ceilings, keeps them, and looks whether kept ones still hold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import psutil
import torch

from sola_profile.hardware import Machine, Surface
from sola_profile.machine import check_device
from sola_profile.machine_store import fingerprint, folder, machine_name, save, stored
from sola_profile.measure.probes import FAMILIES
from sola_profile.measure.surfaces import Drift, Place, measure_surfaces, spot_check
from sola_profile.workload import cpu_threads

# what is measured beside the families, for the progress bar
COSTS = 6


@dataclass(frozen=True)
class Wanted:
    """Which ceilings: of a device (``cpu``, ``cuda:N``), in a dtype, with so many threads of PyTorch's CPU operators."""

    device: str
    dtype: str
    threads: int

    @property
    def place(self) -> Place:
        """Where probes run."""
        return Place(torch.device(self.device), getattr(torch, self.dtype))

    @property
    def steps(self) -> int:
        """How many surfaces are begun."""
        return len(FAMILIES) + COSTS


class Measuring:
    """Measures ceilings: go through ``run()`` to its end, then take the ``machine``; a ``problem`` keeps it from being kept."""

    def __init__(self, wanted: Wanted) -> None:
        check_device(wanted.device)
        self._wanted = wanted
        self.machine: Machine | None = None
        self.problem = ""

    def run(self) -> Iterator[str]:
        """Yields what is measured next; keeps the machine at the end."""
        wanted, start, load = self._wanted, time.monotonic(), round(psutil.getloadavg()[0], 2)
        surfaces: dict[str, Surface] = {}
        with cpu_threads(wanted.threads):
            for name, surface in measure_surfaces(wanted.place):
                if surface is None:
                    yield name
                else:
                    surfaces[name] = surface
        marks = fingerprint(wanted.device)
        self.machine = Machine(
            machine_name(marks, wanted.device, wanted.dtype, wanted.threads),
            True,
            wanted.device,
            wanted.dtype,
            wanted.threads,
            surfaces,
            marks,
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            round(time.monotonic() - start, 2),
            load,
        )
        try:
            save(self.machine)
        except OSError as error:
            # without a cache folder they serve this run alone
            self.problem = f"the ceilings are not kept: can't write to {folder()}: {error.strerror}"


def kept(wanted: Wanted) -> tuple[Machine | None, list[Drift]]:
    """The machine as it was measured before, None when it never was, and which of its rates no longer hold."""
    check_device(wanted.device)
    machine = stored(wanted.device, wanted.dtype, wanted.threads)
    if machine is None:
        return None, []
    with cpu_threads(wanted.threads):
        return machine, spot_check(wanted.place, machine)
