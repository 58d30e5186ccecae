"""Random numbers as pure functions of what they are for: nothing to store in a checkpoint, nothing shared by accident."""

from __future__ import annotations

import numpy as np

from sola_vision.train.config import LARGEST_SEED

# the part of the Philox key that keeps uses apart
PURPOSES = {"train": 0, "eval": 1, "mix": 2, "order": 3, "crop": 4, "weights": 5}


def generator(purpose: str, seed: int, first: int, second: int = 0) -> np.random.Generator:
    """The generator of ``(purpose, seed, first, second)``.

    Key and counter of a Philox hold them, 2^64 blocks apart, so that no two of them share a number. Source: Salmon et
    al., Parallel Random Numbers: As Easy as 1, 2, 3. Raises ``ValueError`` for an unknown purpose or a seed out of range.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"split: expected one of {', '.join(PURPOSES)}, got {purpose!r}")
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed: expected a whole number from 0 to 2^48 - 1, got {seed!r}")
    philox = np.random.Philox(key=[seed, PURPOSES[purpose]], counter=[0, first, second, 0])
    return np.random.Generator(philox)


def derived_seed(purpose: str, seed: int, first: int, second: int = 0) -> int:
    """A seed for libraries that keep random numbers of their own."""
    return int(generator(purpose, seed, first, second).integers(2**32))
