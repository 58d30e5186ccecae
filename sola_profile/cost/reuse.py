"""Where a forward pass finds its data: how far back every operand was last touched, and which bytes are new to the process.

*Reuse distance*: bytes of other blocks touched since a block was touched last. A cache that holds that many bytes still has
it, so a copy loop over a working set of that size has the bandwidth that the operand will see (Mattson et al., 1970).

*New bytes*: the system maps a page when it is first written, which takes longer than writing it. PyTorch's CPU allocator
is the C library's; glibc keeps what is freed, with two exceptions: a block of 32 MiB or more is its own mapping, new
every time, and more than 64 MiB of free memory at the top of the heap goes back to the system. These are where its limits
stop moving, after one block of nearly 32 MiB was freed. Source: mallopt(3).

A new block takes the smallest free gap of the heap that it fits in, else room at its end, as glibc does; for distances it
is taken to lie where the block freed last that it fits in was.
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
class Heap:
    """glibc's heap by addresses. ``gaps``: address → bytes that are free below ``top``; ``mapped``: where new bytes begin."""

    gaps: dict[int, int] = field(default_factory=dict)
    top: int = 0
    mapped: int = 0

    def take(self, size: int) -> tuple[int, int]:
        """A place for a block: its address, and how many bytes of it are new to the process."""
        fitting = [(gap, address) for address, gap in self.gaps.items() if gap >= size]
        if fitting:
            gap, address = min(fitting)
            del self.gaps[address]
            if gap > size:
                self.gaps[address + size] = gap - size
            return address, 0
        address, self.top = self.top, self.top + size
        new_bytes = max(0, self.top - self.mapped)
        self.mapped += new_bytes
        return address, new_bytes

    def free(self, address: int, size: int) -> None:
        """Give a block back; gaps side by side become one, and one at the end may go back to the system."""
        before = next((start for start, gap in self.gaps.items() if start + gap == address), None)
        if before is not None:
            size += self.gaps.pop(before)
            address = before
        size += self.gaps.pop(address + size, 0)
        if address + size < self.top:
            self.gaps[address] = size
            return
        self.top = address
        if self.mapped - self.top > TRIM_THRESHOLD:
            self.mapped = self.top


@dataclass
class _Memory:
    """``places``: where each live block is. ``recent``: bytes last touched of every place, the latest last.

    ``addresses``: of the blocks in the heap.
    """

    places: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    lasting: set[int] = field(default_factory=set)
    freed: list[int] = field(default_factory=list)
    recent: dict[int, int] = field(default_factory=dict)
    heap: Heap = field(default_factory=Heap)
    addresses: dict[int, tuple[int, int]] = field(default_factory=dict)

    def hold(self, event: Touch) -> int:
        """Find a place for a block that has none; returns its new bytes."""
        block, size = event.block, event.block_bytes
        if block in self.places:
            return 0
        if event.lasting:
            self.lasting.add(block)
            self._put(block, size)
            return 0
        if size >= MMAP_THRESHOLD:
            self._put(block, size)
            return size
        fitting = [
            place for place in reversed(self.freed) if LEAST_FILL * self.sizes[place] <= size <= self.sizes[place]
        ]
        if fitting:
            self.freed.remove(fitting[0])
            self.places[block] = fitting[0]
        else:
            self._put(block, size)
        address, new_bytes = self.heap.take(size)
        self.addresses[block] = address, size
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
        if block in self.lasting or block not in self.places:
            return
        place = self.places.pop(block)
        if block in self.addresses:
            self.freed.append(place)
            self.heap.free(*self.addresses.pop(block))
        else:
            self.recent.pop(place, None)

    def end(self) -> None:
        """Free what the pass has left, its result."""
        for block in [block for block in self.places if block not in self.lasting]:
            self.free(block)
