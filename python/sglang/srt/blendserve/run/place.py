"""A folder of parts of a table, on this machine or in an object store."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sglang.srt.blendserve.batch_file.whole_file import write_whole
from sglang.srt.blendserve.tables import remote

_PART = re.compile(r"part-(\d{5,})\.parquet")


def part_name(number: int) -> str:
    """Return the name of a part, by its number from 0."""
    return f"part-{number:05}.parquet"


def part_number(name: str) -> int | None:
    """Return the number of a part, None if ``name`` is not that of one."""
    found = _PART.fullmatch(name)
    return None if found is None else int(found[1])


@dataclass(frozen=True)
class Folder:
    """A folder, by its path or address.

    All methods raise DataError or OSError if it cannot be read or written.
    """

    path: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return remote.shown(self.path)

    @property
    def _is_remote(self) -> bool:
        return remote.is_remote(self.path)

    def make(self) -> None:
        """Make it; an object store needs none."""
        if self._is_remote:
            remote.check(self.path)
        else:
            Path(self.path).mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Return the names of its files, sorted."""
        if self._is_remote:
            return remote.names_in(self.path)
        return sorted(path.name for path in Path(self.path).iterdir() if path.is_file())

    def remove(self, names: Iterable[str]) -> None:
        """Remove files."""
        for name in names:
            if self._is_remote:
                remote.remove(self._in(name))
            else:
                Path(self._in(name)).unlink(missing_ok=True)

    def put_bytes(self, data: bytes, name: str) -> None:
        """Write a small file."""
        if self._is_remote:
            remote.put_bytes(data, self._in(name))
        else:
            write_whole(Path(self._in(name)), data)

    def get_bytes(self, name: str) -> bytes | None:
        """Return the content of a small file, None if it is not there."""
        if self._is_remote:
            return remote.get_bytes(self._in(name))
        path = Path(self._in(name))
        return path.read_bytes() if path.exists() else None

    @contextmanager
    def part(self, name: str) -> Iterator[str]:
        """Give a path on this machine under which the content of a part is."""
        with remote.fetched(self._in(name)) as path:
            yield path

    @contextmanager
    def new_part(self, name: str, work: Path) -> Iterator[Path]:
        """Give a path to write a part to; behind the context it is in its place, whole.

        Args:
            work: a folder for what is not in its place yet.
        """
        if not self._is_remote:
            yield Path(self._in(name))  # `parquet.write` writes whole files
            return
        with tempfile.TemporaryDirectory(dir=work, prefix="part-") as folder:
            path = Path(folder) / name
            yield path
            remote.put(path, self._in(name))

    def _in(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"
