"""Unguessable ids of files and batches, and the check that keeps an id from naming a path.

An id becomes a file name inside the batch directory, so whatever a client sends is matched
against the full pattern before it touches the store.
"""

from __future__ import annotations

import re
import secrets

_FILE_ID = re.compile(r"file-[0-9a-f]{32}", re.ASCII)
_BATCH_ID = re.compile(r"batch_[0-9a-f]{32}", re.ASCII)


def new_file_id() -> str:
    """Return ``file-`` and 128 random bits in hexadecimal."""
    return f"file-{secrets.token_hex(16)}"


def new_batch_id() -> str:
    """Return ``batch_`` and 128 random bits in hexadecimal."""
    return f"batch_{secrets.token_hex(16)}"


def is_file_id(text: str) -> bool:
    """Whether ``text`` has the form of a file id, and so is safe as a file name."""
    return _FILE_ID.fullmatch(text) is not None


def is_batch_id(text: str) -> bool:
    """Whether ``text`` has the form of a batch id, and so is safe as a folder name."""
    return _BATCH_ID.fullmatch(text) is not None


def job_of(batch_id: str) -> str:
    """Return the name of the offline job (`sglang.srt.blendserve.job_ids`) that runs a batch."""
    return batch_id.removeprefix("batch_")
