"""Results of a batch before its end, and what has failed in it by kind.

OpenAI's API has neither. A batch's results are complete when it has ended, and in the order of its
input; until then they are there in the order in which they came.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel

from sglang.srt.blendserve.server.openai_errors import ApiError, invalid, shortened
from sglang.srt.blendserve.server.runner import Runner
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.directory import Store
from sglang.srt.blendserve.store.journal import decode
from sglang.srt.blendserve.store.line_result import LineResult
from sglang.srt.blendserve.store.objects import BatchStatus

MOST_BYTES = 8 << 20
"""Of one answer, unless its first line is longer."""

_MOST_KINDS, _LINES_SHOWN, _MESSAGE_CHARACTERS = 100, 10, 300
_OTHER = "other"
_ENDED_KEPT = 100
"""Batches that have ended whose errors are remembered."""


class ErrorKind(BaseModel):
    """Failed lines of one kind: the same status and code, and messages that differ in numbers.

    Attributes:
        status_code: the endpoint's, None where a line never reached it.
        message: of the first of them.
        lines: numbers of the first of them in the input, where they are known.
        custom_ids: of the first of them that have one, long ones cut.
    """

    status_code: int | None
    code: str | None
    message: str
    count: int = 0
    lines: list[int] = []
    custom_ids: list[str] = []


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
        self._ended: dict[str, Kinds] = {}

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
        size = self._runner.journal_size(record.id)
        if size is None:  # it is being read, or the batch has just ended
            return Page(b"", after)
        path = self._store.workspace(record.id).journal
        return await self._store.io(lambda: _page(path, after, size, limit))

    async def errors(self, record: BatchRecord) -> ErrorKinds:
        """Return what has failed so far, or in all."""
        kinds = await (self._of_file(record) if record.done else self._of_journal(record.id))
        return ErrorKinds(
            data=sorted(kinds.values(), key=lambda kind: -kind.count),
            failed=sum(kind.count for kind in kinds.values()),
            batch_status=record.status,
            complete=record.done,
        )

    async def _of_journal(self, batch_id: str) -> Kinds:
        """Count what the journal has more than the last time."""
        for other in [one for one in self._counted if self._runner.journal_size(one) is None]:
            del self._counted[other]
        counted = self._counted.setdefault(batch_id, _Counted())
        async with counted.turn:
            size = self._runner.journal_size(batch_id) or 0
            path, start = self._store.workspace(batch_id).journal, counted.place
            if start < size:
                found = await self._store.in_turn(
                    lambda: _kinds_in(path, start, size), size - start
                )
                _merge(counted.kinds, found)
                counted.place = size
        return counted.kinds

    async def _of_file(self, record: BatchRecord) -> Kinds:
        """Count what stands in the error file of a batch that has ended; it changes no more."""
        file_id = record.error_file_id
        if file_id is None:
            return {}
        if (known := self._ended.get(record.id)) is not None:
            return known
        path = self._store.files.path(file_id)
        try:
            size = (await self._store.io(path.stat)).st_size
            kinds = await self._store.in_turn(lambda: _kinds_of(path), size)
        except FileNotFoundError:  # deleted since
            return {}
        self._ended[record.id] = kinds
        while len(self._ended) > _ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
        return kinds


Kinds = dict[tuple[Any, ...], ErrorKind]


@dataclass(slots=True)
class _Counted:
    """Failed lines of an open batch, of so many bytes of its journal."""

    place: int = 0
    kinds: Kinds = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


def _page(path: Path, start: int, end: int, limit: int) -> Page:
    if start > end:
        raise _no_place()
    lines: list[bytes] = []
    size, place = 0, start
    for ends_at, result in _results(path, start, end):
        place = ends_at
        if result is not None:  # a damaged one is answered again
            lines.append(result.data)
            size += len(result.data)
        if len(lines) >= limit or size >= MOST_BYTES:
            break
    return Page(b"".join(lines), place)


def _results(path: Path, start: int, end: int) -> Iterator[tuple[int, LineResult | None]]:
    """Yield the results of a part of a journal, each with where it ends.

    Raises:
        ApiError: 400, ``start`` is in the middle of one.
    """
    place = start
    try:
        with path.open("rb") as file:
            if start:
                file.seek(start - 1)
                if file.read(1) != b"\n":
                    raise _no_place()
            while place < end and (record := file.readline()):
                place += len(record)
                yield place, decode(record)
    except FileNotFoundError:  # it has ended just now
        return


def _kinds_in(path: Path, start: int, end: int) -> Kinds:
    results = (result for _, result in _results(path, start, end) if result is not None)
    return _count(result.data for result in results if not result.succeeded)


def _kinds_of(path: Path) -> Kinds:
    with path.open("rb") as lines:
        return _count(lines)


def _no_place() -> ApiError:
    return invalid("Give 0, or the X-Next-After of an earlier answer.", "after", "invalid_value")


def _count(lines: Iterable[bytes]) -> Kinds:
    """Group failed lines."""
    kinds: Kinds = {}
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
        number, custom_id = error.get("line"), result["custom_id"]
        kind = ErrorKind(
            status_code=status,
            code=None if code is None else str(code),
            message=message,
            count=1,
            lines=[number] if isinstance(number, int) else [],
            custom_ids=[] if custom_id is None else [shortened(custom_id)],
        )
        _merge(kinds, {(status, kind.code, re.sub(r"\d+", "0", message)): kind})
    return kinds


def _merge(kinds: Kinds, more: Kinds) -> None:
    """Add groups to others, of which there are never too many."""
    for key, kind in more.items():
        if key not in kinds and len(kinds) >= _MOST_KINDS:
            key, other = (_OTHER,), {"code": _OTHER, "message": "All other kinds."}
            kind = kind.model_copy(update={"status_code": None, **other})
        if key in kinds:
            kinds[key].count += kind.count
            kinds[key].lines = (kinds[key].lines + kind.lines)[:_LINES_SHOWN]
            kinds[key].custom_ids = (kinds[key].custom_ids + kind.custom_ids)[:_LINES_SHOWN]
        else:
            kinds[key] = kind
