"""What an error says, in one line, for tables and messages that go on after it. Needs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# a value that an error quotes seldom takes more
MOST_LINES = 4
# torch's errors on tensors without data, whose message is the bare name of an operator
_NEEDS_DATA = ("DataDependentOutputException", "DynamicOutputShapeException")


def first_line(error: BaseException) -> str:
    """The first line of the message, on to where its brackets close, or the kind of error where it has none."""
    first, *rest = (str(error).strip() or type(error).__name__).splitlines()
    line = _closed(first, rest)
    return f"what it computes depends on values in tensors ({line})" if type(error).__name__ in _NEEDS_DATA else line


def _closed(line: str, rest: Sequence[str]) -> str:
    """A line with those that follow joined on while a bracket is open, where one of them closes it."""
    joined = line
    for further in rest[:MOST_LINES]:
        if joined.count("(") <= joined.count(")"):
            break
        joined = f"{joined} {further.strip()}"
    return joined if joined.count("(") <= joined.count(")") else line


def refused_sizes(model: str, shape: object, reasons: Mapping[str, str]) -> str:
    """That a model takes no size that was asked for, with the reason at each."""
    return (
        f"{model} takes none of these sizes of {shape}: {'; '.join(f'{size}: {why}' for size, why in reasons.items())}"
    )
