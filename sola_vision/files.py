"""Files that are written whole or not at all. Torch-free."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

# characters of a file's name that its temporary file shows, far below what file systems allow
_SHOWN_NAME = 32


def followed(path: Path) -> Path:
    """The file itself, where the path is a link to one: replacing the link would leave the file as it was.

    Raises ``OSError`` for a link that leads to itself.
    """
    if not path.is_symlink():
        return path
    # a file that isn't there yet will be made where the link points
    with suppress(FileNotFoundError):
        path.stat()
    return Path(os.path.realpath(path))


def check_regular(path: Path) -> None:
    """Raise ``ValueError`` for a folder, device, pipe or socket, and the system's ``OSError`` for what can't be looked at."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise ValueError(f"path: expected a file, got the folder {path}")
    if not stat.S_ISREG(mode):
        kinds = {"p": "pipe", "c": "device", "b": "device", "s": "socket"}
        kind = kinds.get(stat.filemode(mode)[0], "special file")
        raise ValueError(f"path: expected a regular file, got the {kind} {path}")


def write_whole(path: Path, content: bytes) -> None:
    """Write beside a file and move over it, so that a reader finds the old one or a whole new one, whoever else writes.

    Where the path is a link, the file that it leads to is replaced. Raises ``OSError`` that names the path.
    """
    path = followed(path)
    # a name of its own, since others may write the same file; the mode is what the umask leaves
    part = path.with_name(f".{path.name[:_SHOWN_NAME]}.{secrets.token_hex(8)}.part")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
