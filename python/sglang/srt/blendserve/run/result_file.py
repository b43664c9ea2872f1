"""One file of result lines, appended to and, after a crash, mended."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import NamedTuple

import orjson

from sglang.srt.blendserve.run.failure import RunFailure


class StoredResult(NamedTuple):
    """Which input line a result is for: an answer goes by ``custom_id``, a refused line by its
    number ``line``, as it may repeat a custom_id or have none. The other one is None."""

    custom_id: str | None
    line: int | None


class ResultFile:
    """A file of result lines that is only ever appended to."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for appending, create it if need be, and lock it.

        Raises:
            RunFailure: it cannot be opened, is not a file, or another run has it.
        """
        self.path = path
        self._broken = False
        self._created = not path.exists()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunFailure(f"Cannot write {path}: {error.strerror}.") from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise RunFailure(f"{path} is not a file. The results are also what --resume needs.")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise RunFailure(f"{path} is being written by another run.") from error

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._fd).st_size

    def append(self, data: bytes) -> None:
        """Append one line, whole or, where that fails, not at all.

        Raises:
            RunFailure: the disk takes no more; from then on it always fails.
        """
        if self._broken:
            raise RunFailure(f"Cannot write {self.path}.")
        start, rest = self.size, memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._broken = True
            os.ftruncate(self._fd, start)
            hint = " Make room on the disk." if error.errno == errno.ENOSPC else ""
            raise RunFailure(f"Cannot write {self.path}: {error.strerror}.{hint}") from error

    def sync(self) -> None:
        """Have the disk keep what was appended.

        Raises:
            RunFailure: it cannot.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise RunFailure(f"Cannot write {self.path}: {error.strerror}.") from error

    def cut(self, size: int) -> None:
        """Keep the first ``size`` bytes only."""
        os.ftruncate(self._fd, size)
        self.sync()

    def close(self, *, discard: bool = False) -> None:
        """Close and unlock the file.

        Args:
            discard: remove it if it did not exist before and nothing was written.
        """
        if discard and self._created and not self.size:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)

    def read(self) -> tuple[list[StoredResult], int]:
        """Return the results in the file, and its size up to the last of them in bytes.

        What stands behind was cut short when the run or the machine ended.

        Raises:
            RunFailure: something else stands between two results.
        """
        results: list[StoredResult] = []
        end = position = 0
        torn: int | None = None
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                position += len(line)
                result = _parse(line)
                if result is None:
                    torn = torn or number
                    continue
                if torn is not None:
                    raise RunFailure(
                        f"{self.path} line {torn} is not a result line but lines behind it are, "
                        "so it was changed by hand. Mend it, or use --overwrite to start again."
                    )
                results.append(result)
                end = position
        return results, end


def _parse(line: bytes) -> StoredResult | None:
    """Return which input line a result line is for, None if it is no result line."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = orjson.loads(line)
        error, custom_id = found["error"], found["custom_id"]
        if error is not None:
            return StoredResult(None, int(error["line"]))
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(custom_id, str) or not isinstance(found.get("response"), dict):
        return None
    return StoredResult(custom_id, None)
