"""One process at a time for a folder that a run writes to. Torch-free."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".lock"
# of file systems that know no locks
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder, which the system takes back from a process that dies; none where there are no locks.

    Readers need none. Raises ``ValueError`` where another writer holds it, or its file can't be opened.
    """
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"out: can't write to {path}: {error.strerror}") from error
    _held.add(handle)
    try:
        if not _locked(handle):
            raise ValueError(
                f"out: another process is writing to {folder}; expected a folder that no other run writes to: "
                "wait for that one, or choose another folder"
            )
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def _locked(handle: int) -> bool:
    """Lock an open file; false where another has it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    return True


def _let_go() -> None:
    """Close a forked child's copies, which would hold the lock for as long as it outlives its parent."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
