"""Receive one file of a multipart form, streamed to the disk and bounded.

FastAPI's ``File`` is not enough: Starlette's parser (1.10) takes a file of any length, writes it to
a temporary file that would have to be copied, and takes a form that is cut short for whole.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from sglang.srt.blendserve.server.openai_errors import ApiError, invalid
from sglang.srt.blendserve.store.disk import ContentWriter

_WRITE_BYTES = 1 << 20
_MAX_FIELD_BYTES = 1 << 14
_MAX_PARTS = 16
_ENVELOPE_BYTES = 1 << 20
_MAX_FILENAME = 255
_DRAIN_SECONDS = 30.0


class Io(Protocol):
    """Runs blocking work off the event loop (`Store.io`)."""

    def __call__(self, work: Callable[[], Any]) -> Awaitable[Any]: ...


@dataclass(slots=True)
class Upload:
    """A form received: its text fields, and the file's name; its content is in the writer."""

    filename: str
    fields: dict[str, str]


@dataclass(slots=True)
class _Form:
    """Collects what the parser finds. The file's bytes gather in ``pending``."""

    max_file_bytes: int
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    file_bytes: int = 0
    pending: bytearray = field(default_factory=bytearray)
    ended: bool = False
    _parts: int = 0
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _header: bytearray = field(default_factory=bytearray)
    _header_value: bytearray = field(default_factory=bytearray)
    _name: str = ""
    _text: bytearray | None = None

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """Return the parser's callbacks."""
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_part,
            "on_part_data": self._take,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise invalid(f"The form has more than {_MAX_PARTS} parts.")
        disposition = self._headers.get(b"content-disposition", b"").decode("latin-1")
        _, options = parse_options_header(disposition)
        self._name = _text(options.get(b"name", b""))
        if b"filename" not in options:
            self._text = bytearray()
        elif self._name != "file" or self.filename is not None:
            raise invalid("Send exactly one file, in the form field 'file'.", "file")
        else:
            self._text = None
            self.filename = _text(options[b"filename"])

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._text is None:
            self.file_bytes += end - start
            if self.file_bytes > self.max_file_bytes:
                raise too_large(self.max_file_bytes)
            self.pending += data[start:end]
        elif len(self._text) + end - start > _MAX_FIELD_BYTES:
            raise invalid(f"This field is longer than {_MAX_FIELD_BYTES} bytes.", self._name)
        else:
            self._text += data[start:end]

    def _end_part(self) -> None:
        if self._text is not None:
            self.fields[self._name] = _text(self._text)

    def _end(self) -> None:
        self.ended = True


def too_large(limit: int) -> ApiError:
    """Return the 413 for a file over the limit."""
    return ApiError(
        413,
        f"The file is larger than this server's limit of {limit} bytes. Split it, or start the "
        "server with a larger --batch-max-file-bytes.",
        param="file",
        code="file_too_large",
    )


async def receive(
    body: AsyncIterator[bytes],
    content_type: str,
    writer: ContentWriter,
    *,
    max_file_bytes: int,
    io: Io,
) -> Upload:
    """Read a multipart form; its file goes into ``writer``, which the caller commits or discards.

    Memory: about 1 MiB, however large the file.

    Raises:
        ApiError: 400, it is not a form with one file in it; 413, the file is too large. The body
            is read on for a while, so that a client that is still sending gets the answer.
        OSError: the disk is full.
    """
    try:
        return await _receive(body, content_type, writer, max_file_bytes, io)
    except ApiError:
        await drain(body, max_file_bytes + _ENVELOPE_BYTES)
        raise


async def drain(body: AsyncIterator[bytes], most: int) -> None:
    """Read a body that nobody wants: at most about ``most`` bytes, and for half a minute.

    Without that a client that is still sending gets a broken connection and not the answer.
    """
    with contextlib.suppress(TimeoutError, ApiError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in body:
                most -= len(chunk)
                if most < 0:
                    break


async def without_pause(body: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """Yield the pieces of a body as they come.

    Raises:
        ApiError: 408, none came for that many seconds.
    """
    pieces = aiter(body)
    while True:
        try:
            async with asyncio.timeout(seconds):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ApiError(
                408,
                f"Nothing of the upload came for {seconds:g} seconds (--batch-upload-timeout). "
                "Send it again.",
                code="upload_timeout",
            ) from None
        yield piece


async def _receive(
    body: AsyncIterator[bytes],
    content_type: str,
    writer: ContentWriter,
    max_file_bytes: int,
    io: Io,
) -> Upload:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise invalid("Send the file as multipart/form-data with a boundary.", "file")
    form = _Form(max_file_bytes)

    async def flush() -> None:
        if form.pending:
            data = bytes(form.pending)
            form.pending.clear()
            await io(lambda: writer.write(data))

    left = max_file_bytes + _ENVELOPE_BYTES
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())  # type: ignore[arg-type]
        async for chunk in body:
            left -= len(chunk)
            if left < 0:
                raise too_large(max_file_bytes)
            parser.write(chunk)
            if len(form.pending) >= _WRITE_BYTES:
                await flush()
    except FormParserError as error:
        raise invalid(f"The form cannot be read: {error}") from error
    if not form.ended:
        raise invalid("The form is not complete: its closing boundary is missing.")
    if form.filename is None:
        raise invalid("Missing required parameter: 'file'.", "file")
    await flush()
    return Upload(_printable(form.filename), form.fields)


def _text(data: bytes | bytearray) -> str:
    return bytes(data).decode("utf-8", errors="replace")


def _printable(name: str) -> str:
    """The file's name as an ordinary one: it is shown to people, never used as a path."""
    name = name.replace("\\", "/").rpartition("/")[2]
    return "".join(c if c.isprintable() else "_" for c in name)[:_MAX_FILENAME] or "upload.jsonl"
