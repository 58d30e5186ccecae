"""Where a forward pass finds its data: how far back every operand was last touched, and which bytes are new to the process.

*Reuse distance*: bytes of other blocks touched since a block was touched last. A cache that holds that many bytes still has
it, so a copy loop over a working set of that size has the bandwidth that the operand will see (Mattson et al., 1970).

*New bytes*: the system maps a page when it is first written, which takes longer than writing it. PyTorch's CPU allocator
is the C library's; glibc keeps what is freed, with two exceptions: a block of 32 MiB or more is its own mapping, new
every time, and more than 64 MiB of free memory at the top of the heap goes back to the system. These are where its limits
stop moving, after one block of nearly 32 MiB was freed. Source: mallopt(3).

The model has no addresses: a new block takes the place of the one freed last that it fits in, and the heap ends where the
live bytes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from sola_profile.hardware import MMAP_THRESHOLD, TRIM_THRESHOLD

# a freed block is taken for a new one of at least this share of it
LEAST_FILL = 0.5
# the first pass brings weights and heap to where later ones find them
PASSES = 2


@dataclass(frozen=True)
class Touch:
    """A call reads or writes ``touched_bytes`` of a block of ``block_bytes``. ``lasting``: a weight or the input."""

    call: int
    block: int
    touched_bytes: int
    block_bytes: int
    lasting: bool = False


@dataclass(frozen=True)
class Death:
    """A block is freed."""

    block: int


Event = Touch | Death


@dataclass
class Access:
    """What a call touches. ``touched``: (bytes, reuse distance) of every operand and result; ``new_bytes``: see above."""

    touched: list[tuple[int, float]] = field(default_factory=list)
    new_bytes: int = 0


def accesses(events: Sequence[Event], calls: int) -> list[Access]:
    """The accesses of every call of a pass that follows others."""
    memory = _Memory()
    found: list[Access] = []
    for _ in range(PASSES):
        found = [Access() for _ in range(calls)]
        for event in events:
            if isinstance(event, Death):
                memory.free(event.block)
            else:
                access = found[event.call]
                access.new_bytes += memory.hold(event)
                access.touched.append((event.touched_bytes, memory.touch(event)))
        memory.end()
    return found


@dataclass
class _Memory:
    """``places``: where each live block is. ``recent``: bytes last touched of every place, the latest last."""

    places: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    lasting: set[int] = field(default_factory=set)
    freed: list[int] = field(default_factory=list)
    recent: dict[int, int] = field(default_factory=dict)
    live_bytes: int = 0
    mapped_bytes: int = 0

    def hold(self, event: Touch) -> int:
        """Find a place for a block that has none; returns its new bytes."""
        if event.block in self.places:
            return 0
        if event.lasting:
            self.lasting.add(event.block)
            self._put(event.block, event.block_bytes)
            return 0
        size = event.block_bytes
        if size >= MMAP_THRESHOLD:
            self._put(event.block, size)
            return size
        fitting = [
            place for place in reversed(self.freed) if LEAST_FILL * self.sizes[place] <= size <= self.sizes[place]
        ]
        if fitting:
            self.freed.remove(fitting[0])
            self.places[event.block] = fitting[0]
        else:
            self._put(event.block, size)
        self.live_bytes += self.sizes[self.places[event.block]]
        new_bytes = max(0, self.live_bytes - self.mapped_bytes)
        self.mapped_bytes += new_bytes
        return new_bytes

    def _put(self, block: int, size: int) -> None:
        place = len(self.sizes)
        self.places[block], self.sizes[place] = place, size

    def touch(self, event: Touch) -> float:
        """Reuse distance of a block, which is touched now."""
        place, distance = self.places[event.block], 0
        for other in reversed(self.recent):
            if other == place:
                break
            distance += self.recent[other]
        known = self.recent.pop(place, None) is not None
        self.recent[place] = event.touched_bytes
        return distance if known else inf

    def free(self, block: int) -> None:
        """Give a block back, where it was ever touched."""
        place = self.places.pop(block, None)
        if place is None or block in self.lasting:
            return
        size = self.sizes[place]
        if size >= MMAP_THRESHOLD:
            self.recent.pop(place, None)
            return
        self.freed.append(place)
        self.live_bytes -= size
        if self.mapped_bytes - self.live_bytes > TRIM_THRESHOLD:
            self.mapped_bytes = self.live_bytes

    def end(self) -> None:
        """Free what the pass has left, its result."""
        for block in [block for block in self.places if block not in self.lasting]:
            self.free(block)
