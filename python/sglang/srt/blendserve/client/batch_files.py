"""Files that go to a server as batches, and the lines of one that are to be tried again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

import orjson

from sglang.srt.blendserve.batch_file.spool import spooled
from sglang.srt.blendserve.client.server import ClientError
from sglang.srt.blendserve.tables import request_file
from sglang.srt.blendserve.tables.data_error import DataError


def opened(path: str) -> IO[bytes]:
    """Open a file of requests as JSON lines, wherever it is and in whatever form
    (`request_file.opened`).

    Raises:
        ClientError: it cannot be read.
        OSError: there is no such file.
    """
    try:
        return request_file.opened(path)
    except DataError as error:
        raise ClientError(str(error)) from error


def endpoint_of(file: IO[bytes], name: str) -> str:
    """Return the endpoint that the first line which has one names; the file stands at its start
    again.

    Raises:
        ClientError: no line names one.
    """
    try:
        for line in file:
            try:
                url = orjson.loads(line)["url"]
            except (ValueError, KeyError, TypeError):
                continue  # the server says what is wrong with it
            if isinstance(url, str):
                return url
    finally:
        file.seek(0)
    raise ClientError(f"no line of {name} names its url; give --endpoint")


def failed_lines(requests: Iterable[bytes], errors: Iterable[bytes]) -> IO[bytes]:
    """Return the lines of a batch that its error file names, as a file.

    Raises:
        ClientError: there are none.
    """
    names, numbers = set(), set()
    for line in errors:
        error = orjson.loads(line)
        refused = error.get("error")
        if refused is not None and refused.get("line") is not None:
            numbers.add(refused["line"])
        elif error.get("custom_id") is not None:
            names.add(error["custom_id"])
    chosen = (
        line
        for number, line in enumerate(requests, start=1)
        if number in numbers or _custom_id(line) in names
    )
    found = spooled(chosen)
    if not found.read(1):
        found.close()
        raise ClientError("no line of the batch has failed, so there is nothing to try again")
    found.seek(0)
    return found


def _custom_id(line: bytes) -> str | None:
    try:
        found = orjson.loads(line)["custom_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
