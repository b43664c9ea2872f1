"""Files that are whole or not there, whatever ends the process or the machine."""

from __future__ import annotations

import os
from pathlib import Path


def beside(path: Path) -> Path:
    """Return a temporary name for what is to become ``path``; readers of folders pass it over."""
    return path.with_name(f".{path.name}.tmp")


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file that is written its name, synced to the disk.

    Raises:
        OSError: the disk takes no more.
    """
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file.

    Raises:
        OSError: the disk takes no more; what was there before stays.
    """
    temporary = beside(path)
    try:
        temporary.write_bytes(data)
        put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
