"""Patterns that a reader knows, to be marked among others."""

from __future__ import annotations

from sola_profile.study.space import Space
from sola_vision.presets import neighbours

# every k-th layer softmax, counted through the whole backbone
EVERY = (2, 3, 4)
GIVEN = "given"


def known_patterns(space: Space) -> dict[str, tuple[str, ...]]:
    """Letters → names: the backbone's own pattern, where other families put softmax, and every k-th layer.

    Linear is the first letter that isn't softmax, softmax the first that is; without both, only the spec's and
    the given pattern are known.
    """
    found: dict[str, tuple[str, ...]] = {space.read(space.spec.pattern): (space.spec.name,)}
    found[space.own_letters] = found.get(space.own_letters, (GIVEN,))
    letters = {space.is_softmax(letter): letter for letter in reversed(list(space.spec.mixers))}
    if len(letters) == 2:
        named = {name: _translated(pattern, letters) for name, pattern in neighbours(space.spec.depths).items()}
        for step in EVERY:
            marks = (index % step == step - 1 for index in range(len(space.own_letters)))
            named[f"every {step}."] = "".join(letters[mark] for mark in marks)
        for name, pattern in named.items():
            found[pattern] = (*found.get(pattern, ()), name)
    return found


def _translated(pattern: str, letters: dict[bool, str]) -> str:
    """A pattern of L and S in the letters of the backbone."""
    return "".join(letters[letter == "S"] for letter in pattern.replace("|", ""))
