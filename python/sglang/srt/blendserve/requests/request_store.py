"""A request store as its readers see it: columns and token ids, without copying any.

A store may be read while it is written, in another process too: `RequestStore.ready` grows. It is
whole when its seal is there, which is written last and says for which input and model it is.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sglang.srt.blendserve.batch_file.types import LineError
from sglang.srt.blendserve.requests.columns import (
    COLUMNS,
    ERRORS_FILE,
    HAS_TOKENS,
    NAMES_FILE,
    READY_FILE,
    TOKEN,
    TOKENS_FILE,
    UNUSABLE,
    Array,
    all_files,
    checksum_of,
    column_file,
)
from sglang.srt.blendserve.store.disk import sync_directory, write_whole

SEAL_FILE = "whole.json"
_VERSION = 1

Fingerprint = Mapping[str, str]
"""What a store is made of: input, model, templates, releases. Stores of equal ones are equal."""


class RequestStore:
    """The requests of an input. Columns are as `columns.COLUMNS` has them."""

    def __init__(self, folder: Path) -> None:
        """Read the store in ``folder``, of which not all need be written.

        Raises:
            OSError: there is none.
        """
        self._folder = folder
        self._ready_fd = os.open(folder / READY_FILE, os.O_RDONLY | os.O_CLOEXEC)
        self._mapped: dict[str, Array] = {}

    @property
    def ready(self) -> int:
        """Rows that are written and may be read."""
        return int.from_bytes(os.pread(self._ready_fd, 8, 0), "little")

    def columns(self, rows: int | None = None) -> dict[str, Array]:
        """Return all columns, read-only: views of the files, without a copy.

        Args:
            rows: how many, at most `ready`; None: all that are ready.
        """
        count = self.ready if rows is None else rows
        return {name: self.column(name, count) for name in COLUMNS}

    def column(self, name: str, rows: int | None = None) -> Array:
        """Return one column, read-only; see `columns`. ``flags`` may still change."""
        count = self.ready if rows is None else rows
        return self._map(column_file(name), COLUMNS[name], count)

    def tokens(self, row: int) -> NDArray[np.int32]:
        """Return the token ids of a row, (length,) and read-only; none where they are not known."""
        if not self.column("flags", row + 1)[row] & HAS_TOKENS:
            return np.zeros(0, dtype=TOKEN)
        start = int(self.column("offset", row + 1)[row])
        end = start + int(self.column("length", row + 1)[row])
        return self._map(TOKENS_FILE, TOKEN, end)[start:end]

    def prompts(self, rows: NDArray[np.int64] | None = None) -> list[NDArray[np.int32]]:
        """Return the token ids of rows, as a plan takes them: views, in the order of ``rows``.

        Args:
            rows: which, None: all that are ready.
        """
        count = self.ready
        chosen = np.arange(count) if rows is None else rows
        columns = {name: self.column(name, count) for name in ("offset", "length", "flags")}
        starts = columns["offset"][chosen]
        ends = starts + np.where(
            columns["flags"][chosen] & HAS_TOKENS, columns["length"][chosen], 0
        )
        tokens = self._map(TOKENS_FILE, TOKEN, int(ends.max(initial=0)))
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        return [tokens[start:end] for start, end in pairs]

    def usable(self) -> NDArray[np.int64]:
        """Return the rows that are for the engine, so far."""
        return np.flatnonzero((self.column("flags") & UNUSABLE) == 0)

    def errors(self) -> dict[int, LineError]:
        """Return why lines are no valid requests, or refused, by line number."""
        with (self._folder / ERRORS_FILE).open("rb") as file:
            found = [LineError.model_validate_json(line) for line in file if line.endswith(b"\n")]
        return {error.line or 0: error for error in found}  # the last one of a line counts

    def names(self, kind: str) -> list[str]:
        """Return the names that numbers of a column stand for: of ``namespace`` or ``model``."""
        with (self._folder / NAMES_FILE).open("rb") as file:
            found = [orjson.loads(line) for line in file if line.endswith(b"\n")]
        return ["", *(name for given, name in found if given == kind)]

    def close(self) -> None:
        """Close the files. Arrays that were handed out stay."""
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
            self._ready_fd = -1
        self._mapped.clear()

    def _map(self, name: str, dtype: np.dtype[Any], count: int) -> Array:
        """Return the first ``count`` elements of a file; maps anew what has grown."""
        found = self._mapped.get(name)
        if found is None or len(found) < count:
            with (self._folder / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size // dtype.itemsize * dtype.itemsize
                if not size:
                    return np.zeros(0, dtype=dtype)
                mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            found = self._mapped[name] = np.frombuffer(mapped, dtype=dtype)
        return found[:count]


def seal(folder: Path, fingerprint: Fingerprint, files: Mapping[str, tuple[int, int]]) -> None:
    """Say that the store in ``folder`` is whole, which is the last that is written to it.

    Args:
        fingerprint: what it was made of.
        files: size and checksum of each, synced to the disk.

    Raises:
        OSError: the disk takes no data.
    """
    content = {"version": _VERSION, "fingerprint": dict(fingerprint), "files": files}
    write_whole(folder / SEAL_FILE, json.dumps(content).encode())


def open_whole(folder: Path, fingerprint: Fingerprint) -> RequestStore | None:
    """Return the store in ``folder`` if it is whole and of this fingerprint, else None.

    Reads all of it, to compare checksums.
    """
    try:
        content = orjson.loads((folder / SEAL_FILE).read_bytes())
        same = content["version"] == _VERSION and content["fingerprint"] == dict(fingerprint)
        if not same or sorted(content["files"]) != sorted(all_files()):
            return None
        for name in all_files():
            if checksum_of(folder / name) != tuple(content["files"][name]):
                return None
        store = RequestStore(folder)
        sizes = {
            content["files"][column_file(name)][0] // t.itemsize for name, t in COLUMNS.items()
        }
        if sizes == {store.ready}:
            return store
        store.close()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def delete_store(folder: Path) -> None:
    """Remove the store in ``folder``, its seal first, and the folder if nothing else is in it.

    Arrays that a reader has got stay as they are.

    Raises:
        OSError: a file cannot be removed.
    """
    for name in (SEAL_FILE, *all_files()):
        (folder / name).unlink(missing_ok=True)
        if name == SEAL_FILE and folder.is_dir():
            sync_directory(folder)
    with contextlib.suppress(OSError):  # not empty, or not there
        folder.rmdir()
