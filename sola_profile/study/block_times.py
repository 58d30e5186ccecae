"""What one layer of each kind takes on this machine, timed alone and in turns."""

# B batch, N tokens, C channels

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import cast

import torch
from torch import nn

from sola_profile.case import Resolution, Settings
from sola_profile.measure.allocator import settle_allocator
from sola_profile.measure.latency import Latency, Sample, WarmUp, summarize, timer_for
from sola_profile.measure.statistics import Interval
from sola_profile.measuring import is_out_of_memory
from sola_profile.study.space import Costs, Space
from sola_profile.workload import SEED, Step
from sola_vision.backbone import Stage
from sola_vision.factory import create_model
from sola_vision.layers.block import Block
from sola_vision.layers.bridge import HiddenStateBridge, bridge_name
from sola_vision.spec import Bridge, LayerId

NANOSECONDS = 1e9
FEWEST_ROUNDS, MOST_ROUNDS = 3, 100
# a layer of which one run takes more of the time for all is left out
LONGEST_SHARE = 0.1

# a piece of a backbone: a layer by stage and letter, a bridge, or what all patterns share by name
Part = tuple[int, str] | Bridge | str


@dataclass(frozen=True)
class PartTime:
    """Time per step of one part, with its 95 % interval or another honest range."""

    middle_s: float
    interval_s: Interval


@dataclass(frozen=True)
class PartTimes:
    """Time of every part that a pattern may have. ``latencies``: what was measured. ``together``: all are off as one."""

    by_part: Mapping[Part, PartTime]
    latencies: Mapping[Part, Latency] = field(default_factory=dict)
    together: bool = False

    @classmethod
    def measured(cls, latencies: Mapping[Part, Latency]) -> PartTimes:
        """Medians."""
        return cls({part: PartTime(found.median_s, found.interval_s) for part, found in latencies.items()}, latencies)

    def costs(self) -> Costs:
        """In whole nanoseconds."""
        whole = {part: round(NANOSECONDS * time.middle_s) for part, time in self.by_part.items()}
        return Costs(
            sum(time for part, time in whole.items() if isinstance(part, str)),
            {part: time for part, time in whole.items() if isinstance(part, tuple)},
            {part: time for part, time in whole.items() if isinstance(part, Bridge)},
        )

    def knows(self, space: Space, letters: str) -> bool:
        """Whether every layer of a pattern has been timed."""
        return all((place.stage, letter) in self.by_part for place, letter in zip(space.places, letters, strict=True))

    def interval(self, space: Space, letters: str) -> Interval:
        """Around the sum of a pattern: layers of one kind are wrong together, different kinds independently.

        ``± √(Σ_kind (number · half width)²)`` of the kinds' 95 % intervals. It knows the scatter of the timings; that a
        layer inside a model may take longer than alone it does not know. ``together``: the half widths simply add.
        """
        counts: dict[Part, int] = {part: 1 for part in self.by_part if isinstance(part, str)}
        for place, letter in zip(space.places, letters, strict=True):
            counts[place.stage, letter] = counts.get((place.stage, letter), 0) + 1
        counts.update({bridge: 1 for bridge in space.spec.bridges if space.fits(bridge, letters)})
        widths = [n * (self.by_part[p].interval_s.high - self.by_part[p].interval_s.low) / 2 for p, n in counts.items()]
        half_s = sum(widths) if self.together else sqrt(sum(width**2 for width in widths))
        middle_s = self.costs().of(space, letters) / NANOSECONDS
        return Interval(max(0.0, middle_s - half_s), middle_s + half_s)


class PartRace:
    """Times all parts in turns. ``left_out``: layers without a time, and why."""

    def __init__(self, space: Space, resolution: Resolution, settings: Settings, macs: Costs, budget_s: float) -> None:
        self.left_out: dict[tuple[int, str], str] = {}
        self._macs = macs
        self._timer = timer_for(torch.device(settings.device))
        self._budget_s = budget_s
        self._steps = dict(_steps(space, resolution, settings))
        self._warm: dict[Part, WarmUp] = {}
        self._samples: dict[Part, list[Sample[str]]] = {}

    def run(self) -> Iterator[str]:
        """Run every part twice, then go through all of them again and again, as through the layers of a model.

        Between two runs of a part all others have their turn, so that it finds the caches as it would in a model. One that
        has had its share of the time sits out. Yields what is done next.
        """
        settle_allocator()
        start = self._timer.now()
        for part in sorted(self._steps, key=self._order):
            yield f"warming up {part_name(part)}"
            self._prepare(part)
        share_s = self._budget_s / max(1, len(self._warm))
        for number in range(MOST_ROUNDS):
            yield f"timing all parts in turns, round {number + 1}"
            waiting = [part for part in self._steps if part in self._warm and self._wants_more(part, share_s)]
            if number >= FEWEST_ROUNDS and self._timer.now() > start + self._budget_s:
                break
            for part in waiting:
                self._sample(part, number)

    def _wants_more(self, part: Part, share_s: float) -> bool:
        taken = self._samples[part]
        return len(taken) < FEWEST_ROUNDS or sum(sample.time_s for sample in taken) < share_s

    def _sample(self, part: Part, number: int) -> None:
        try:
            self._samples[part].append(Sample(part_name(part), number, self._timer.time(self._steps[part])))
        except Exception as error:
            if not self._ran_out_of_memory(part, error):
                raise

    def _order(self, part: Part) -> tuple[int, int]:
        """What every pattern needs first, then layers from cheap to dear."""
        return (1, self._macs.layers[part]) if isinstance(part, tuple) else (0, 0)

    def _prepare(self, part: Part) -> None:
        if isinstance(part, tuple):
            estimated_s = self._estimate_s(part)
            if estimated_s > LONGEST_SHARE * self._budget_s:
                self.left_out[part] = f"a run would take about {estimated_s:.2g} s"
                return
        try:
            self._warm[part] = WarmUp(tuple(self._timer.time(self._steps[part]) for _ in range(2)), settled=False)
            self._samples[part] = []
        except Exception as error:
            if not self._ran_out_of_memory(part, error):
                raise

    def _estimate_s(self, part: tuple[int, str]) -> float:
        """By the matrix products of the dearest layer so far."""
        known = [other for other in self._warm if isinstance(other, tuple)]
        if not known:
            return 0.0
        dearest = max(known, key=self._macs.layers.__getitem__)
        return min(self._warm[dearest].times_s) * self._macs.layers[part] / self._macs.layers[dearest]

    def _ran_out_of_memory(self, part: Part, error: BaseException) -> bool:
        """Whether that is what happened to a layer; it is left out then."""
        if not isinstance(part, tuple) or not is_out_of_memory(error):
            return False
        self.left_out[part] = "out of memory"
        self._warm.pop(part, None)
        error.__traceback__ = None
        return True

    def times(self) -> PartTimes | None:
        """What every part takes that isn't left out; None while one has no sample."""
        found = {part: summarize(self._samples[part], warm) for part, warm in self._warm.items() if self._samples[part]}
        return PartTimes.measured(found) if len(found) + len(self.left_out) == len(self._steps) else None


def part_name(part: Part) -> str:
    """``stage 3 S``, ``1.2->3.3``, ``embedding``."""
    return f"stage {part[0]} {part[1]}" if isinstance(part, tuple) else str(part)


def _steps(space: Space, resolution: Resolution, settings: Settings) -> Iterator[tuple[Part, Step]]:
    """Every part as a step of its own, on random input of the size that it gets in the model."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    grids = space.spec.token_grids(resolution.height, resolution.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = create_model(space.spec).to(device, dtype).eval()
        image = torch.randn(settings.batch, space.spec.in_channels, resolution.height, resolution.width)
        tensors = [
            torch.randn(settings.batch, rows * columns, dim)
            for (rows, columns), dim in zip(grids, space.spec.dims, strict=True)
        ]
        blocks = {
            (stage, letter): _block(space, stage, letter).to(device, dtype).eval()
            for stage, letter in dict.fromkeys(
                (place.stage, letter) for place in space.places for letter in space.choices(place)
            )
        }
    image, tensors = image.to(device, dtype), [tensor.to(device, dtype) for tensor in tensors]
    yield "embedding", _quiet(model.embedding, image)
    for number, module in enumerate(model.stages):
        stage = cast(Stage, module)
        if stage.merging is not None:
            yield f"merging {number + 1}", _quiet(stage.merging, tensors[number - 1], grids[number - 1])
    assert model.head is not None
    yield "head", _quiet(model.head, tensors[-1])
    for part, block in blocks.items():
        yield part, _quiet(block, tensors[part[0] - 1], grids[part[0] - 1])
    for bridge in space.spec.bridges:
        wire = cast(HiddenStateBridge, model.bridges[bridge_name(bridge)])
        source, target = bridge.source.stage - 1, bridge.target.stage - 1
        yield bridge, _bridge_step(wire, tensors[source], grids[source], tensors[target])


def _block(space: Space, stage: int, letter: str) -> Block:
    place = LayerId(stage, 1)
    uniform = "|".join(letter * depth for depth in space.spec.depths)
    layer = replace(space.spec, pattern=uniform, bridges=()).layer(place)
    return Block(layer, space.spec, drop_path=0.0, keep_state=False)


def _quiet(module: nn.Module, *arguments: object) -> Step:
    def step() -> None:
        with torch.inference_mode():
            module(*arguments)

    return step


def _bridge_step(bridge: HiddenStateBridge, state: torch.Tensor, grid: tuple[int, int], x: torch.Tensor) -> Step:
    def step() -> None:
        with torch.inference_mode():
            bridge(x, bridge.sample(state, grid))

    return step
