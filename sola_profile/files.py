"""Files that are written whole or not at all. Torch-free."""

from __future__ import annotations

from pathlib import Path

from sola_vision.files import write_whole


def is_stream(path: Path) -> bool:
    """Whether there is a device or a pipe, such as ``/dev/stdout``, which is written to and never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    if is_stream(path):
        path.write_text(text, encoding="utf-8")
        return
    write_whole(path, text.encode("utf-8"))
