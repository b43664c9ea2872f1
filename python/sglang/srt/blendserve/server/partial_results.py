"""Results of a batch before its end, and what has failed in it by kind.

OpenAI's API has neither. A batch's results are complete when it has ended, and in the order of its
input; until then they are there in the order in which they came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel

from sglang.srt.blendserve.server.openai_errors import ApiError, invalid
from sglang.srt.blendserve.server.runner import Runner
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.directory import Store
from sglang.srt.blendserve.store.journal import decode
from sglang.srt.blendserve.store.objects import BatchStatus

MOST_BYTES = 8 << 20
"""Of one answer, unless its first line is longer."""

_MOST_KINDS, _LINES_SHOWN, _MESSAGE_CHARACTERS = 100, 10, 300
_OTHER = "other"


class ErrorKind(BaseModel):
    """Failed lines of one kind: the same status and code, and messages that differ in numbers.

    Attributes:
        status_code: the endpoint's, None where a line never reached it.
        message: of the first of them.
        lines: numbers of the first of them in the input, where they are known.
    """

    status_code: int | None
    code: str | None
    message: str
    count: int = 0
    lines: list[int] = []


class ErrorKinds(BaseModel):
    """What has failed in a batch, the most frequent first."""

    object: Literal["list"] = "list"
    data: list[ErrorKind]
    failed: int
    batch_status: BatchStatus
    complete: bool


class Page(NamedTuple):
    """Some results, as lines of a result file, and where the next begin."""

    lines: bytes
    after: int


class PartialResults:
    """Reads what batches have written so far."""

    def __init__(self, store: Store, runner: Runner) -> None:
        self._store, self._runner = store, runner
        self._counted: dict[str, _Counted] = {}

    async def page(self, record: BatchRecord, after: int, limit: int) -> Page:
        """Return results of a batch that has not ended.

        Args:
            after: where they begin: 0, or what an earlier page has said.
            limit: most lines.

        Raises:
            ApiError: 400, ``after`` is nothing that a page has said; 409, the batch has ended.
        """
        if record.done:
            raise ApiError(
                409,
                f"The batch has ended ({record.status}): its results are complete in "
                "output_file_id and error_file_id.",
                param="batch_id",
                code="batch_has_ended",
            )
        size = self._runner.journal_size(record.id) or 0
        path = self._store.workspace(record.id).journal
        return await self._store.io(lambda: _read(path, after, size, limit))

    async def errors(self, record: BatchRecord) -> ErrorKinds:
        """Return what has failed so far, or in all."""
        if not record.done:
            kinds = await self._of_journal(record.id)
        else:
            self._counted.pop(record.id, None)
            kinds = await self._store.io(lambda: self._of_file(record.error_file_id))
        return ErrorKinds(
            data=sorted(kinds.values(), key=lambda kind: -kind.count),
            failed=sum(kind.count for kind in kinds.values()),
            batch_status=record.status,
            complete=record.done,
        )

    async def _of_journal(self, batch_id: str) -> dict[Any, ErrorKind]:
        """Count what the journal has more than the last time."""
        size = self._runner.journal_size(batch_id) or 0
        counted = self._counted.setdefault(batch_id, _Counted(0, {}))
        path = self._store.workspace(batch_id).journal
        while counted.place < size:
            start, kinds = counted
            page = await self._store.io(lambda: _read(path, start, size, None))  # noqa: B023
            counted = self._counted.get(batch_id, counted)
            if counted.place != start:
                continue  # somebody else has counted these
            _count(kinds, (line for line in page.lines.splitlines() if _failed(line)))
            if page.after == start:
                break
            counted = self._counted[batch_id] = _Counted(page.after, kinds)
        for other in [one for one in self._counted if self._runner.journal_size(one) is None]:
            del self._counted[other]
        return counted.kinds

    def _of_file(self, file_id: str | None) -> dict[Any, ErrorKind]:
        kinds: dict[Any, ErrorKind] = {}
        if file_id is not None:
            try:
                with self._store.files.path(file_id).open("rb") as lines:
                    _count(kinds, lines)
            except FileNotFoundError:  # deleted since
                pass
        return kinds


class _Counted(NamedTuple):
    place: int
    kinds: dict[Any, ErrorKind]


def _read(path: Path, start: int, end: int, limit: int | None) -> Page:
    if start > end:
        raise _no_place()
    lines: list[bytes] = []
    size, place = 0, start
    try:
        with path.open("rb") as file:
            if start:
                file.seek(start - 1)
                if file.read(1) != b"\n":
                    raise _no_place()
            while place < end and (limit is None or len(lines) < limit) and size < MOST_BYTES:
                record = file.readline()
                place += len(record)
                result = decode(record)
                if result is not None:  # a damaged one is answered again
                    lines.append(result.data)
                    size += len(result.data)
    except FileNotFoundError:  # it has ended just now
        pass
    return Page(b"".join(lines), place)


def _no_place() -> ApiError:
    return invalid("Give 0, or the X-Next-After of an earlier answer.", "after", "invalid_value")


def _failed(line: bytes) -> bool:
    found = orjson.loads(line)
    response = found["response"]
    return response is None or response["status_code"] >= 400


def _count(kinds: dict[Any, ErrorKind], lines: Iterable[bytes]) -> None:
    """Add failed lines to their kinds."""
    for line in lines:
        result = orjson.loads(line)
        response, error = result["response"], result["error"] or {}
        status = None
        if response is not None:
            status, body = response["status_code"], response["body"]
            error = body.get("error") if isinstance(body, dict) else None
            error = error if isinstance(error, dict) else {"message": str(error or body)}
        message = str(error.get("message") or "")[:_MESSAGE_CHARACTERS]
        code = error.get("code") or error.get("type")
        code = None if code is None else str(code)
        key: tuple[Any, ...] = (status, code, re.sub(r"\d+", "0", message))
        if key not in kinds and len(kinds) >= _MOST_KINDS:
            key, status, code, message = (_OTHER,), None, _OTHER, "All other kinds."
        kind = kinds.setdefault(key, ErrorKind(status_code=status, code=code, message=message))
        kind.count += 1
        number = error.get("line")
        if isinstance(number, int) and len(kind.lines) < _LINES_SHOWN:
            kind.lines.append(number)
