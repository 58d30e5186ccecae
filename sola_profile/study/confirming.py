"""Whole models of a few patterns, measured in turns beside what their layers predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from sola_profile.case import Resolution, Settings
from sola_profile.measure.contest import Contestant, prepare
from sola_profile.measure.latency import Sample, interleave, timer_for
from sola_profile.measuring import is_out_of_memory
from sola_profile.study.placement import Confirmation, Option
from sola_profile.workload import build
from sola_vision.spec import BackboneSpec

# share of the time for running each model until it is steady
WARMUP_SHARE = 0.15


class Confirming:
    """Measures options; ``found`` gives what is finished."""

    def __init__(
        self, spec: BackboneSpec, options: Sequence[Option], resolution: Resolution, settings: Settings, budget_s: float
    ) -> None:
        self._spec = spec
        self._options = {option.pattern: option for option in options}
        self._resolution = resolution
        self._settings = settings
        self._budget_s = budget_s
        self._timer = timer_for(torch.device(settings.device))
        self._contestants: dict[str, Contestant] = {}

    def run(self) -> Iterator[str]:
        """Warm up and sample; yields what is done next."""
        start = self._timer.now()
        limit_s = WARMUP_SHARE * self._budget_s / max(1, len(self._options))
        for pattern in self._options:
            yield f"measuring {self._spec.name}[{pattern}]"
            try:
                workload = build(self._spec.with_pattern(pattern), self._settings)
                step = workload.step(workload.image(self._resolution))
                self._contestants[pattern] = prepare(step, self._timer, limit_s)
            except Exception as error:
                if not self._ran_out_of_memory(pattern, error):
                    raise
        steps = {pattern: contestant.step for pattern, contestant in self._contestants.items()}
        warm = {pattern: contestant.warm for pattern, contestant in self._contestants.items()}
        round_s = sum(max(each.times_s) for each in warm.values())
        deadline = max(start + self._budget_s, self._timer.now() + 2 * round_s)
        for sample in interleave(steps, warm, self._timer, deadline, self._ran_out_of_memory):
            self._contestants[sample.key].samples.append(Sample(sample.key, sample.round, sample.time_s))

    def _ran_out_of_memory(self, pattern: str, error: BaseException) -> bool:
        if not is_out_of_memory(error):
            return False
        self._contestants.pop(pattern, None)
        error.__traceback__ = None
        return True

    def found(self) -> tuple[Confirmation, ...]:
        """One for every option."""
        measured = {pattern: contestant.latency() for pattern, contestant in self._contestants.items()}
        return tuple(Confirmation(option, measured.get(pattern)) for pattern, option in self._options.items())
