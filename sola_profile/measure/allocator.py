"""The C library's allocator, in the state in which times are measured."""

from __future__ import annotations

import torch

from sola_profile.hardware import MMAP_THRESHOLD


def settle_allocator() -> None:
    """Let glibc see a large block come and go, after which the limits stay from which it gives memory back (mallopt(3)).

    They rise with the largest block that was freed so far. A small image would be slower before a large one was seen
    than after it, and times would depend on what else a process measured.
    """
    torch.empty(MMAP_THRESHOLD - 2**12, dtype=torch.uint8)
