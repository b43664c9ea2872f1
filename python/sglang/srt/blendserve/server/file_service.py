"""Files: what ``/v1/files`` does, without HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from pydantic import ValidationError

from sglang.srt.blendserve.server.batch_settings import BatchSettings
from sglang.srt.blendserve.server.openai_errors import ApiError, invalid, not_valid, shortened
from sglang.srt.blendserve.server.parameters import CreateFile, ListFiles
from sglang.srt.blendserve.server.upload import drain, receive, without_pause
from sglang.srt.blendserve.server.users import may_see, owner
from sglang.srt.blendserve.store import file_table
from sglang.srt.blendserve.store.directory import Store, now
from sglang.srt.blendserve.store.disk import ContentWriter
from sglang.srt.blendserve.store.objects import (
    DeletedFile,
    FileObject,
    ListPage,
    is_file_id,
    new_file_id,
)

_REFUSED_BYTES = 1 << 22
"""Bytes read of an upload that is refused: a client that is still sending then gets the answer."""


class FileService:
    """Uploads, lists, reads and deletes files of the store."""

    def __init__(self, store: Store, settings: BatchSettings) -> None:
        self._store, self._settings = store, settings
        self._uploads = 0

    async def upload(self, body: AsyncIterator[bytes], content_type: str) -> FileObject:
        """Store the file of a multipart form; when this returns it survives any crash.

        Raises:
            ApiError: the form is not right, or the file too large; 408, nothing came for too long;
                429, too many others are being received.
            OSError, sqlite3.Error: the disk is full; nothing is stored.
        """
        lively = without_pause(body, self._settings.upload_timeout)
        if self._uploads >= self._settings.max_uploads:
            await drain(lively, _REFUSED_BYTES)
            raise _too_many(self._settings.max_uploads)
        self._uploads += 1
        try:
            return await self._receive(lively, content_type)
        finally:
            self._uploads -= 1

    async def _receive(self, body: AsyncIterator[bytes], content_type: str) -> FileObject:
        store, file_id = self._store, new_file_id()
        writer = await store.io(lambda: store.files.new(file_id))
        try:
            upload = await receive(
                body,
                content_type,
                writer,
                max_file_bytes=self._settings.max_file_bytes,
                io=store.io,
            )
            wanted = _checked(upload.fields)
            keep, created_at = wanted.expires_after, now()
            file = FileObject(
                id=file_id,
                bytes=writer.size,
                created_at=created_at,
                expires_at=None if keep is None else created_at + keep.seconds,
                filename=upload.filename,
                purpose=wanted.purpose,
                owner=owner(),
            )
            await self._keep(file, writer)
        finally:
            await store.io(writer.discard)
        return file

    async def add(
        self, filename: str, lines: Callable[[], Iterable[bytes]], size: int, owner: str | None
    ) -> FileObject:
        """Make a file for batches of lines that the server has.

        Args:
            lines: returns them.
            size: about how many bytes are read for that.
            owner: whose it is.

        Raises:
            OSError, sqlite3.Error: the disk is full; nothing is stored.
        """
        store, file_id = self._store, new_file_id()
        writer = await store.io(lambda: store.files.new(file_id))

        def write() -> None:
            for line in lines():
                writer.write(line if line.endswith(b"\n") else line + b"\n")

        try:
            await store.in_turn(write, size)
            file = FileObject(
                id=file_id,
                bytes=writer.size,
                created_at=now(),
                filename=filename,
                purpose="batch",
                owner=owner,
            )
            await self._keep(file, writer)
        finally:
            await store.io(writer.discard)
        return file

    async def _keep(self, file: FileObject, writer: ContentWriter) -> None:
        """Put a file in its place: row, content, row. Whatever a crash leaves half done, the next
        start clears away."""
        store = self._store
        await store.db.write(lambda db: file_table.insert_file(db, file, state="pending"))
        await store.io(writer.commit)
        await store.db.write(
            lambda db: file_table.mark_ready(
                db, file.id, file.bytes, file.created_at, file.expires_at
            )
        )

    async def list(self, query: ListFiles) -> ListPage[FileObject]:
        """Return a page of files.

        Raises:
            ApiError: 400, ``after`` names no file.
        """
        try:
            files, more = await self._store.db.read(
                lambda db: file_table.list_files(db, now=now(), owner=owner(), **query.model_dump())
            )
        except LookupError as error:
            raise invalid("No such file to list after.", "after") from error
        return ListPage.of(files, more)

    async def get(self, file_id: str) -> FileObject:
        """Return a file's object.

        Raises:
            ApiError: 404.
        """
        file = None
        if is_file_id(file_id):
            file = await self._store.db.read(lambda db: file_table.get_file(db, file_id, now()))
        if file is None or not may_see(file.owner):
            raise _no_file(file_id)
        return file

    async def content(self, file_id: str) -> tuple[FileObject, Path]:
        """Return a file's object and where its content is.

        Raises:
            ApiError: 404.
        """
        file = await self.get(file_id)
        path = self._store.files.path(file.id)
        if not await self._store.io(path.is_file):
            raise _no_file(file_id)
        return file, path

    async def delete(self, file_id: str) -> DeletedFile:
        """Delete a file. Batches that have it as their input go on: they hold their own link.

        Raises:
            ApiError: 404.
        """
        file = await self.get(file_id)
        await self._store.db.write(lambda db: file_table.delete(db, file.id))
        await self._store.io(lambda: self._store.files.delete(file.id))
        return DeletedFile(id=file.id)


def _too_many(limit: int) -> ApiError:
    return ApiError(
        429,
        f"This server receives {limit} uploads already, its limit (--batch-max-uploads). Try again "
        "in a while.",
        code="too_many_uploads",
    )


def _checked(fields: dict[str, str]) -> CreateFile:
    try:
        return CreateFile.model_validate(fields)
    except ValidationError as error:
        raise not_valid(error.errors()) from error


def _no_file(file_id: str) -> ApiError:
    return ApiError(404, f"No such File object: {shortened(file_id)}", param="id")
