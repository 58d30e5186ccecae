"""Peak memory as a quantity: what it includes, and the part of it that is there before a step begins. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """What a step holds when an operator has run: ``live_bytes`` on top of what was there before it."""

    place: str
    live_bytes: int


@dataclass(frozen=True)
class PeakMemory:
    """Tensor memory at the moment when most of it is alive.

    ``parameter_bytes``: parameters and buffers. ``input_bytes``: the image batch. ``step_bytes``: everything that
    one step allocates and that lives at the peak: activations, in training also gradients. ``at``: the place of the
    peak where it is known, such as ``stages.0.1.mix aten.relu``. ``optimizer_bytes``: what an optimizer keeps between
    steps. ``gradient_bytes``: of the step, gradients of parameters that were complete at the peak.
    """

    parameter_bytes: int
    input_bytes: int
    step_bytes: int
    at: str = ""
    optimizer_bytes: int = 0
    gradient_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Parameters, optimizer, input and step together."""
        return self.parameter_bytes + self.optimizer_bytes + self.input_bytes + self.step_bytes
