"""Whether a request store fits on its disk, asked before it is begun."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sglang.srt.blendserve.requests.columns import ROW_BYTES

BYTES_A_BYTE = 1.0
"""Bytes of token ids for each byte of the input: a token id has four, and so has a token of
English text, about; JSON around it makes up for what the chat template adds."""


class NoRoom(ValueError):
    """The disk has too little room; the message names the folder and what to do."""


def store_bytes(input_bytes: int, lines: int) -> int:
    """Return about how many bytes the store of an input takes.

    A million lines of 400 tokens: about 1.6 GB of token ids.
    """
    return int(input_bytes * BYTES_A_BYTE) + lines * ROW_BYTES


def check_room(folder: Path, input_bytes: int, lines: int, mend: str) -> None:
    """Check that a store fits into ``folder``, which need not be there yet.

    Args:
        folder: where it is to be.
        input_bytes: size of the input after decompression.
        lines: how many the input has.
        mend: what to do if it does not, as a sentence.

    Raises:
        NoRoom: it does not.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    needed = store_bytes(input_bytes, lines)
    if free < needed:
        raise NoRoom(
            f"The tokenized requests take about {_shown(needed)}, and {os.fspath(folder)} has "
            f"{_shown(free)} left. {mend}"
        )


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
