"""A temporary file of lines that can be read again and again, and that nobody else sees."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import IO


def new_spool() -> IO[bytes]:
    """Return an empty one, which is gone when it is closed."""
    return tempfile.TemporaryFile(prefix="sglang-blendserve-")


def spooled(lines: Iterable[bytes]) -> IO[bytes]:
    """Return one with ``lines``, each with its end, that stands at its start.

    Raises what ``lines`` raises, and OSError where the disk is full.
    """
    spool = new_spool()
    try:
        for line in lines:
            spool.write(line if line.endswith(b"\n") else line + b"\n")
        spool.flush()
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return spool
