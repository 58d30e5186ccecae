"""What fits in a given memory: the largest batch at a size, and the largest square image; predicted, then run for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sola_profile.case import MAX_SIDE, Resolution, Settings
from sola_profile.cost.liveness import predict_peak
from sola_profile.errors import first_line
from sola_profile.source import BuildError, InputShape, ModelSource
from sola_profile.workload import Workload, build, cpu_threads

MOST_IMAGES = 2**16
HEADROOM = 0.05
# of models without a spec; most have this one
USUAL_STRIDE = 32
# long enough for two large steps on a slow machine
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Confirmation:
    """Two real steps in a process that is held against the limit, on top of what it was when all had loaded.

    ``ran``: whether they came to their end and took no more. ``peak_bytes``: the high-water mark on top of that start, of
    resident memory that is no page of a file; None where the system doesn't tell. ``why``: what stopped it.
    """

    ran: bool
    peak_bytes: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Fitted:
    """The most that fits: ``resolution`` and ``batch`` with its predicted total, and the total of the next larger one.

    ``batch`` is 0 where not even one image fits, and then ``total_bytes`` is what that would take. ``next_bytes``: None
    where nothing larger was looked at.
    """

    resolution: Resolution
    batch: int
    total_bytes: int
    next_bytes: int | None
    confirmation: Confirmation | None = None


@dataclass
class Fitting:
    """Looks for what fits; ``batches``, ``square`` and ``refused`` hold what is found by now.

    ``headroom``: share of the limit that is kept free, for what the allocator and libraries need beside tensors.
    """

    source: ModelSource
    settings: Settings
    limit_bytes: int
    shape: InputShape | None = None
    headroom: float = HEADROOM
    batches: list[Fitted] = field(default_factory=list)
    square: Fitted | None = None
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def usable_bytes(self) -> int:
        """What tensors may take."""
        return int(self.limit_bytes * (1 - self.headroom))

    @property
    def unconfirmed(self) -> list[tuple[Fitted, Confirmation]]:
        """Answers whose run failed, with what happened."""
        found = [*self.batches, *filter(None, [self.square])]
        return [(each, each.confirmation) for each in found if each.confirmation and not each.confirmation.ran]

    def run(self, resolutions: Sequence[Resolution], *, confirm: bool) -> Iterator[str]:
        """Batches at every size, then the square; yields what is done next."""
        with cpu_threads(self.settings.threads):
            for resolution in resolutions:
                yield f"looking for the largest batch of {self.source.name} at {resolution}"
                try:
                    found = self._largest_batch(resolution)
                except BuildError:
                    raise
                except Exception as error:
                    if self.source.spec is not None:
                        raise
                    self.refused[str(resolution)] = first_line(error)
                    continue
                self.batches.append(found)
                if confirm and found.batch:
                    yield f"running {found.batch} images at {resolution} under that limit"
                    self.batches[-1] = replace(found, confirmation=self._confirm(found))
            yield f"looking for the largest square image of {self.source.name}"
            self.square = self._largest_square()
            if self.square is not None and confirm and self.square.batch:
                yield f"running {self.square.resolution} under that limit"
                self.square = replace(self.square, confirmation=self._confirm(self.square))

    def _largest_batch(self, resolution: Resolution) -> Fitted:
        workload = self._workload(resolution)

        def total(images: int) -> int:
            return predict_peak(replace(workload, shape=workload.shape.with_batch(images)), resolution).total_bytes

        images, taken, further = most_that_fits(total, self.usable_bytes, MOST_IMAGES)
        return Fitted(resolution, images, taken, further)

    def _largest_square(self) -> Fitted | None:
        stride = USUAL_STRIDE if self.source.spec is None else self.source.spec.stride

        def total(steps: int) -> int:
            return predict_peak(workload, Resolution(steps * stride, steps * stride)).total_bytes

        try:
            workload = build(self.source, self.settings, "meta", shape=self.shape)
            steps, taken, further = most_that_fits(total, self.usable_bytes, MAX_SIDE // stride, power=2)
        except Exception as error:
            if self.source.spec is not None:
                raise
            self.refused["other sizes"] = first_line(error)
            return None
        side = max(1, steps) * stride
        return Fitted(Resolution(side, side), self.settings.batch if steps else 0, taken, further)

    def _workload(self, resolution: Resolution) -> Workload:
        """The model on meta, built for this size where it takes no other."""
        workload = build(self.source, self.settings, "meta", shape=self.shape)
        try:
            predict_peak(workload, resolution)
        except Exception:
            workload = build(self.source, self.settings, "meta", shape=self.shape, resolution=resolution)
        return workload

    def _confirm(self, found: Fitted) -> Confirmation:
        request = {
            "model": self.source.name,
            "settings": {**asdict(self.settings), "batch": found.batch},
            "shape": None if self.shape is None else str(self.shape),
            "resolution": str(found.resolution),
            "limit_bytes": self.limit_bytes,
        }
        return run_under_limit(request)


# values after which a rule that has not found the answer takes turns with bisection
TRUSTED_GUESSES = 6


def most_that_fits(
    total: Callable[[int], int], limit_bytes: int, most: int, power: int = 1
) -> tuple[int, int, int | None]:
    """The largest n up to ``most`` with ``total(n) ≤ limit_bytes``, its total, and that of n + 1, None beyond ``most``.

    n is 0 where not even 1 fits.

    ``total`` must rise with n; where it is ``a + b·n^power``, a few values are enough to find the answer, and otherwise
    twice as many as bisection takes.
    """
    known: dict[int, int] = {}

    def value(number: int) -> int:
        if number not in known:
            known[number] = total(number)
        return known[number]

    low, high = 0, most + 1
    guess = 1
    while high - low > 1:
        number = min(max(guess, low + 1), high - 1)
        if value(number) <= limit_bytes:
            low = number
        else:
            high = number
        guess = _guess(known, limit_bytes, power, low)
        if len(known) >= TRUSTED_GUESSES and len(known) % 2 == 0:
            guess = (low + high) // 2
        elif guess in known:
            # the rule has said what it can; halve what is left, and look next to the answer first
            guess = low + 1 if low + 1 not in known else (low + high) // 2
    return low, value(max(1, low)), value(low + 1) if low < most else None


def _guess(known: Mapping[int, int], limit_bytes: int, power: int, low: int) -> int:
    """Where the line through the two nearest values meets the limit."""
    if len(known) < 2:
        return 2
    near = sorted(known, key=lambda number: abs(number - low))[:2]
    (x1, y1), (x2, y2) = sorted((number**power, known[number]) for number in near)
    rise = (y2 - y1) / (x2 - x1)
    return low + 1 if rise <= 0 else int(max(0.0, x1 + (limit_bytes - y1) / rise) ** (1 / power))


def run_under_limit(request: dict[str, Any]) -> Confirmation:
    """Two steps in a process of its own, stopped where it takes far more than the limit and failed where it takes more."""
    # every large block on its own pages, given back when it is freed, so that the heap has no holes
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
    command = [sys.executable, "-m", "sola_profile.fitting_worker"]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Confirmation(False, None, f"took more than {TIMEOUT_S} s")
    if ended.returncode != 0:
        said = ended.stderr.strip().splitlines()
        return Confirmation(False, None, said[-1] if said else f"ended with status {ended.returncode}")
    return Confirmation(**json.loads(ended.stdout))
