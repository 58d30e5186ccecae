"""The pattern grammar: one letter per layer, ``|`` between stages.

::

    pattern = stage ("|" stage)*
    stage   = item+
    item    = (LETTER | "(" item+ ")") ["*" COUNT]

``L*2|L*2|(LLS)*2|LS`` and ``LL|LL|LLSLLS|LS`` are the same pattern. Blanks are ignored. A letter is an
upper-case A-Z and names a mixer (see ``BackboneSpec.mixers``); what it means is not decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

MAX_LAYERS = 4096
MAX_NESTING = 64


class PatternError(ValueError):
    """A pattern that can't be read; the message shows the pattern with a caret under the mistake."""

    def __init__(self, text: str, position: int, reason: str) -> None:
        self.text = text
        self.position = position
        self.reason = reason
        # one blank per character, so that the caret stays under its place whatever blank was written
        shown = "".join(" " if character.isspace() else character for character in text)
        super().__init__(f"pattern: {reason}\n  {shown}\n  {' ' * position}^")


class _Reader:
    """A recursive-descent reader that remembers, for every layer, the character it came from."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.nesting = 0

    def fail(self, reason: str, position: int | None = None) -> PatternError:
        return PatternError(self.text, self.position if position is None else position, reason)

    def peek(self) -> str:
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1
        return self.text[self.position] if self.position < len(self.text) else ""

    def pattern(self) -> list[list[tuple[str, int]]]:
        stages = [self.stage()]
        while self.peek() == "|":
            self.position += 1
            stages.append(self.stage())
        if self.peek():
            raise self.fail(self.unexpected("a layer letter, '(' or '|'"))
        return stages

    def stage(self) -> list[tuple[str, int]]:
        layers = self.items()
        if not layers:
            raise self.fail(self.unexpected("a layer letter or '('"))
        return layers

    def items(self) -> list[tuple[str, int]]:
        layers: list[tuple[str, int]] = []
        while (here := self.peek()) and here not in "|)":
            layers.extend(self.item())
            if len(layers) > MAX_LAYERS:
                raise self.fail(f"more than {MAX_LAYERS} layers in a stage")
        return layers

    def item(self) -> list[tuple[str, int]]:
        here = self.peek()
        start = self.position
        if here == "(":
            self.position += 1
            self.nesting += 1
            if self.nesting > MAX_NESTING:
                raise self.fail(f"more than {MAX_NESTING} parentheses inside each other", start)
            layers = self.items()
            self.nesting -= 1
            if self.peek() != ")":
                raise self.fail("this '(' is never closed", start)
            if not layers:
                raise self.fail("empty parentheses", start)
            self.position += 1
        elif here.isascii() and here.isupper():
            self.position += 1
            layers = [(here, start)]
        else:
            raise self.fail(self.unexpected("a layer letter A-Z or '('"))
        return layers * self.repeat(len(layers))

    def repeat(self, size: int) -> int:
        if self.peek() != "*":
            return 1
        self.position += 1
        self.peek()
        start = self.position
        while self.position < len(self.text) and self.text[self.position] in "0123456789":
            self.position += 1
        digits = self.text[start : self.position]
        if not digits:
            raise self.fail("'*' needs a whole number after it")
        # a long run of digits is refused by its length, before it becomes a number
        if len(digits) > 4 or int(digits) * size > MAX_LAYERS:
            raise self.fail(f"repeats to more than {MAX_LAYERS} layers", start)
        if int(digits) == 0:
            raise self.fail("a repeat of 0 leaves no layer", start)
        return int(digits)

    def unexpected(self, wanted: str) -> str:
        here = self.peek()
        found = f"found {here!r}" if here else "the pattern ends"
        return f"{found} where {wanted} was expected"


def parse_pattern(
    text: str, *, depths: Sequence[int] | None = None, letters: Collection[str] | None = None
) -> tuple[str, ...]:
    """Expand a pattern into one string of letters per stage.

    ``depths``: layers per stage that the pattern must have, if given. ``letters``: the letters it may use.

    Raises ``PatternError`` (a ``ValueError``) that points at the offending character.

    >>> parse_pattern("L*2|L*2|(LLS)*2|LS")
    ('LL', 'LL', 'LLSLLS', 'LS')
    """
    if not isinstance(text, str):
        raise TypeError(f"pattern: expected a str, got {type(text).__name__}")
    stages = _Reader(text).pattern()
    if letters is not None:
        for letter, position in (layer for stage in stages for layer in stage):
            if letter not in letters:
                allowed = ", ".join(sorted(letters))
                raise PatternError(text, position, f"letter {letter!r} names no mixer; allowed: {allowed}")
    if depths is not None:
        _check_depths(text, stages, depths)
    return tuple("".join(letter for letter, _ in stage) for stage in stages)


def _check_depths(text: str, stages: list[list[tuple[str, int]]], depths: Sequence[int]) -> None:
    if len(stages) != len(depths):
        position = stages[len(depths)][0][1] if len(stages) > len(depths) else len(text)
        raise PatternError(text, position, f"{len(stages)} stages where the backbone has {len(depths)}")
    for number, (stage, depth) in enumerate(zip(stages, depths, strict=True), start=1):
        if len(stage) != depth:
            position = stage[depth][1] if len(stage) > depth else stage[-1][1]
            raise PatternError(text, position, f"stage {number} has {len(stage)} layers where the backbone has {depth}")


def format_pattern(stages: Sequence[str]) -> str:
    """The canonical spelling: expanded letters joined by ``|``."""
    return "|".join(stages)
