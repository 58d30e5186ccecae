"""Files that are written whole or not at all. Torch-free."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def is_stream(path: Path) -> bool:
    """Whether there is a device or a pipe, such as ``/dev/stdout``, which is written to and never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def followed(path: Path) -> Path:
    """The file itself, where the path is a link to one: replacing the link would leave the file as it was."""
    return path.resolve() if path.is_symlink() else path


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    if is_stream(path):
        path.write_text(text, encoding="utf-8")
        return
    path = followed(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
