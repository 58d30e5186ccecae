"""What an error says, in one line, for tables and messages that go on after it. Needs nothing."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of the message, or the kind of error where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
