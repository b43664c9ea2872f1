"""Files that go to a server as batches, and the lines of one that are to be tried again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

import orjson

from sglang.srt.blendserve.batch_file import failed_lines as failed
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
    found = spooled(failed.failed_lines(requests, errors))
    if not found.read(1):
        found.close()
        raise ClientError("no line of the batch has failed, so there is nothing to try again")
    found.seek(0)
    return found
