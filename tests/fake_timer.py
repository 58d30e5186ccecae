"""A clock for tests, which moves as they say."""

from collections.abc import Callable


class FakeTimer:
    """A clock that only moves while a step runs; ``slow_down``: how much longer steps take after every run."""

    def __init__(self, slow_down: float = 0.0) -> None:
        self.clock_s = 0.0
        self.factor = 1.0
        self.slow_down = slow_down

    def time(self, step: Callable[[], object]) -> float:
        """What a step takes."""
        before = self.clock_s
        step()
        return self.clock_s - before

    def now(self) -> float:
        """Seconds since it was made."""
        return self.clock_s

    def step(self, *durations_s: float) -> Callable[[], None]:
        """A step that takes these times in turn, the last one for ever."""
        left = list(durations_s)

        def run() -> None:
            self.clock_s += (left.pop(0) if len(left) > 1 else left[0]) * self.factor
            self.factor *= 1 + self.slow_down

        return run
