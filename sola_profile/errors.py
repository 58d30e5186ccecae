"""What an error says, in one line, for tables and messages that go on after it. Needs nothing."""

from __future__ import annotations

# torch's errors on tensors without data, whose message is the bare name of an operator
_NEEDS_DATA = ("DataDependentOutputException", "DynamicOutputShapeException")


def first_line(error: BaseException) -> str:
    """The first line of the message, or the kind of error where it has none."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"what it computes depends on values in tensors ({line})" if type(error).__name__ in _NEEDS_DATA else line
