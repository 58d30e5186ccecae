"""What one layer of each kind would take on a machine, from its ceilings: nothing is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sola_profile.case import Resolution, Settings
from sola_profile.cost.recording import record_at
from sola_profile.cost.roofline import ModelTime, predict_times
from sola_profile.hardware import NONE, Machine, Span
from sola_profile.measure.statistics import Interval
from sola_profile.source import ModelSource
from sola_profile.study.block_times import Part, PartTime, PartTimes
from sola_profile.study.space import Space
from sola_vision.layers.bridge import bridge_name
from sola_vision.spec import BackboneSpec

BETWEEN = "between layers"


class PartPrediction:
    """Predicts whole models of one letter, and takes them apart. ``uncounted``: operators whose work is in no time."""

    def __init__(self, space: Space, resolution: Resolution, settings: Settings, machine: Machine) -> None:
        self._space = space
        self._resolution = resolution
        self._settings = settings
        self._machine = machine
        self._spans: dict[Part, Span] = {}
        self.uncounted: set[str] = set()

    def run(self) -> Iterator[str]:
        """Yields what is done next."""
        spec = self._space.spec
        for letter in self._space.letters_used:
            yield f"predicting a model all {letter} on {self._machine.name}"
            pattern = "|".join(letter * depth for depth in spec.depths)
            found = self._parts(replace(spec, pattern=pattern, bridges=()))
            for part, span in found.items():
                # the same parts of other letters are the same work
                self._spans.setdefault(part, span)
        if spec.bridges:
            yield f"predicting the bridges on {self._machine.name}"
            bridges = {bridge_name(bridge): bridge for bridge in spec.bridges}
            for part, span in self._parts(spec).items():
                if part in bridges:
                    self._spans[bridges[str(part)]] = span

    def times(self) -> PartTimes:
        """Of all parts; the ends of the intervals lie where all ceilings are off in one direction."""
        times = {part: PartTime(span.middle, Interval(span.low, span.high)) for part, span in self._spans.items()}
        return PartTimes(times, together=True)

    def _parts(self, spec: BackboneSpec) -> dict[Part, Span]:
        source = ModelSource.of(spec)
        shape = source.default_input.with_batch(self._settings.batch)
        machine = self._machine
        recording = record_at(source, shape, machine.dtype, self._resolution, device_type=machine.device_type)
        predicted = predict_times(recording, machine)
        self.uncounted.update(predicted.uncounted)
        return _taken_apart(predicted, spec)


def _taken_apart(predicted: ModelTime, spec: BackboneSpec) -> dict[Part, Span]:
    """Time of each part; of the layers of a stage and letter the mean. Views and Python are shared out by calls."""
    share = 1 / max(1, len(predicted.calls))
    found: dict[Part, Span] = {}
    for call in predicted.calls:
        part, times = _part_of(call.call.module, spec)
        found[part] = found.get(part, NONE) + (call.time + predicted.rest.times(share)).times(1 / times)
    return found


def _part_of(module: str, spec: BackboneSpec) -> tuple[Part, int]:
    """The part that a module belongs to, and how many such parts the model has."""
    parts = module.split(".")
    if parts[0] == "stages" and len(parts) > 2:
        stage = int(parts[1])
        if parts[2] == "merging":
            return f"merging {stage + 1}", 1
        letters = spec.stages[stage]
        letter = letters[int(parts[3])]
        return (stage + 1, letter), letters.count(letter)
    if parts[0] == "bridges" and len(parts) > 1:
        return parts[1], 1
    return (parts[0], 1) if parts[0] in ("embedding", "head") else (BETWEEN, 1)
