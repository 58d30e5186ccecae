"""The tail of an error about an unknown name; torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'near'? Known: …"``, or without a suggestion where nothing is near; case doesn't matter."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = f"; did you mean {by_lower[near[0]]!r}?" if near else "."
    return f"{hint} Known: {', '.join(by_lower.values()) or 'none'}"
