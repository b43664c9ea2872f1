"""The lines of a batch that have failed, for another try."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson


def failed_lines(requests: Iterable[bytes], errors: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a batch file that its error file names, with their ends.

    A refused line goes by its number, since it may have no usable custom_id; any other by that.
    """
    names: set[str] = set()
    numbers: set[int] = set()
    for line in errors:
        error = orjson.loads(line)
        refused = error.get("error")
        if refused is not None and refused.get("line") is not None:
            numbers.add(refused["line"])
        elif error.get("custom_id") is not None:
            names.add(error["custom_id"])
    for number, line in enumerate(requests, start=1):
        if number in numbers or _custom_id(line) in names:
            yield line


def _custom_id(line: bytes) -> str | None:
    try:
        found = orjson.loads(line)["custom_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
