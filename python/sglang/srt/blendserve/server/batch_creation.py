"""New batches: of an uploaded file, or of what has failed in another batch; each once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import aiosqlite

from sglang.srt.blendserve.allowed_hosts import AllowedHosts, NotAllowed
from sglang.srt.blendserve.batch_file.failed_lines import failed_lines
from sglang.srt.blendserve.server.file_service import FileService
from sglang.srt.blendserve.server.openai_errors import ApiError, invalid
from sglang.srt.blendserve.server.parameters import CreateBatch, ExpiresAfter, window_seconds
from sglang.srt.blendserve.server.served_engine import ServedEngine
from sglang.srt.blendserve.server.users import Users, owner
from sglang.srt.blendserve.store import batch_table, idempotency_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.directory import Store, now
from sglang.srt.blendserve.store.objects import FileObject, new_batch_id

_MOST_METADATA = 16


class Created(NamedTuple):
    """A batch, and whether this call has created it and not an earlier one with its key."""

    record: BatchRecord
    is_new: bool


class BatchCreation:
    """Creates batches in the store; who runs them is another's business."""

    def __init__(
        self,
        store: Store,
        files: FileService,
        engine: ServedEngine,
        webhooks: AllowedHosts,
        users: Users,
    ) -> None:
        """``webhooks``: whom batches may have called."""
        self._store, self._files, self._engine, self._webhooks = store, files, engine, webhooks
        self._users = users

    async def create(self, wanted: CreateBatch, key: str | None = None) -> Created:
        """Create a batch; when this returns it survives any crash.

        Args:
            key: of an `idempotency_table`: a second call with it creates nothing and returns the
                batch of the first.

        Raises:
            ApiError: 400, no such input file, not one for batches, an endpoint that the server's
                model does not have, or a webhook that it does not call; 422, the key has created
                another batch.
            OSError, sqlite3.Error: the disk is full; nothing is stored.
        """
        request, key = _digest(wanted.model_dump_json()), _own(key)
        if key is not None and (known := await self._created_by(key, request)) is not None:
            return known
        return await self._create(wanted, key, request, owner())

    async def _create(
        self, wanted: CreateBatch, key: str | None, request: str, owner: str | None
    ) -> Created:
        if wanted.endpoint not in self._engine.endpoints:
            has = ", ".join(sorted(self._engine.endpoints))
            raise invalid(
                f"The model of this server does not do {wanted.endpoint}; it does {has}.",
                "endpoint",
                "invalid_value",
            )
        store, batch_id, created_at = self._store, new_batch_id(), now()
        file = await self._check_input(wanted.input_file_id)
        input_id = file.id
        if wanted.webhook_url is not None:
            try:
                self._webhooks.check(wanted.webhook_url)
            except NotAllowed as error:
                message = f"webhook_url cannot be called: {error} (--batch-webhook-hosts)."
                raise invalid(message, "webhook_url", "invalid_value") from error
        await self._check_quota(owner)
        workspace = store.workspace(batch_id)
        keep = wanted.output_expires_after
        record = BatchRecord(
            id=batch_id,
            endpoint=wanted.endpoint,
            input_file_id=input_id,
            completion_window=wanted.completion_window,
            metadata=wanted.metadata,
            output_expires_after=None if keep is None else keep.seconds,
            model=self._engine.model,
            created_at=created_at,
            expires_at=created_at + window_seconds(wanted.completion_window),
            priority=wanted.priority,
            webhook_url=wanted.webhook_url,
            owner=owner,
            input_bytes=file.bytes,
        )
        about = record.model_dump_json()
        try:
            await store.io(lambda: workspace.create(store.files.path(input_id), about))
        except FileNotFoundError as error:  # deleted just now
            raise _no_input(input_id) from error
        try:
            await store.db.write(lambda db: _insert(db, record, key, request))
        except sqlite3.IntegrityError:  # the same call, made twice at the same time
            await store.io(workspace.remove)
            known = None if key is None else await self._created_by(key, request)
            if known is None:
                raise
            return known
        except BaseException:
            await store.io(workspace.remove)
            raise
        return Created(record, is_new=True)

    async def retry(self, record: BatchRecord, key: str | None = None) -> Created:
        """Create a batch of the lines that have failed in another, which has ended.

        Args:
            record: the other one.
            key: as in `create`.

        Raises:
            ApiError: 409, it has not ended, no line of it has failed, or its input is gone.
        """
        request, key = _digest(f"retry {record.id}"), _own(key)
        if key is not None and (known := await self._created_by(key, request)) is not None:
            return known
        if not record.done:
            raise _not_retryable(f"it has not ended ({record.status})")
        if record.error_file_id is None:
            raise _not_retryable("no line of it has failed")
        file = await self._failed_lines(record)
        keep = record.output_expires_after
        metadata = record.metadata or {}
        if len(metadata) < _MOST_METADATA or "retry_of" in metadata:
            metadata = {**metadata, "retry_of": record.id}
        wanted = CreateBatch(
            input_file_id=file.id,
            endpoint=record.endpoint,
            completion_window=record.completion_window,
            metadata=metadata,
            output_expires_after=None
            if keep is None
            else ExpiresAfter(anchor="created_at", seconds=keep),
            priority=record.priority,
            webhook_url=self._still_called(record.webhook_url),
        )
        created: Created | None = None
        try:
            created = await self._create(wanted, key, request, record.owner)
        finally:
            if created is None or not created.is_new:  # the same call, made at the same time
                await self._files.delete(file.id)
        return created

    async def _failed_lines(self, record: BatchRecord) -> FileObject:
        """Make a file of the lines of a batch that its error file names."""
        assert record.error_file_id is not None
        paths = []
        for file_id in (record.input_file_id, record.error_file_id):
            try:
                paths.append((await self._files.content(file_id))[1])
            except ApiError as error:
                raise _not_retryable(f"its file {file_id} is gone") from error

        def lines() -> Iterator[bytes]:
            with paths[0].open("rb") as requests, paths[1].open("rb") as errors:
                yield from failed_lines(requests, errors)

        try:
            size = (await self._store.io(paths[0].stat)).st_size
            name = f"retry-{record.id}.jsonl"
            return await self._files.add(name, lines, size, record.owner)
        except FileNotFoundError as error:  # deleted just now
            raise _not_retryable("one of its files is gone") from error

    async def _check_quota(self, name: str | None) -> None:
        """Refuse a batch of a user whose open batches have as many requests as they may.

        Raises:
            ApiError: 429.
        """
        if name is None:
            return
        there = await self._store.db.read(lambda db: batch_table.open_requests(db, name))
        if (message := self._users.over_quota(name, there + 1)) is not None:
            raise ApiError(429, message, code="quota_exceeded")

    async def _check_input(self, file_id: str) -> FileObject:
        try:
            file = await self._files.get(file_id)
        except ApiError as error:
            raise _no_input(file_id) from error
        if file.purpose != "batch":
            raise invalid(
                f"File {file.id} has the purpose '{file.purpose}'; a batch takes one with the "
                "purpose 'batch'.",
                "input_file_id",
                "invalid_value",
            )
        return file

    def _still_called(self, url: str | None) -> str | None:
        """Return who was to be called, None if this server does not call it any more."""
        try:
            if url is not None:
                self._webhooks.check(url)
        except NotAllowed:
            return None
        return url

    async def _created_by(self, key: str, request: str) -> Created | None:
        """Return the batch that a key has created, None if it has created none.

        Raises:
            ApiError: 422, it has created one of another request.
        """
        found = await self._store.db.read(lambda db: idempotency_table.find(db, key, now()))
        if found is None:
            return None
        if found[0] != request:
            raise ApiError(
                422,
                "This Idempotency-Key has created another batch. Use a new key for a new request.",
                param="Idempotency-Key",
                code="idempotency_key_reused",
            )
        record = await self._store.db.read(lambda db: batch_table.get_batch(db, found[1]))
        return Created(record, is_new=False)


def _no_input(file_id: str) -> ApiError:
    return invalid(f"No such File object: {file_id[:80]}", "input_file_id", "file_not_found")


def _not_retryable(why: str) -> ApiError:
    return ApiError(409, f"Cannot retry: {why}.", param="batch_id", code="batch_not_retryable")


def _own(key: str | None) -> str | None:
    """Return an Idempotency-Key as it is stored: users cannot take each other's."""
    name = owner()
    return key if key is None or name is None else f"{name}\0{key}"


def _digest(request: str) -> str:
    return blake2b(request.encode(), digest_size=16).hexdigest()


async def _insert(
    db: aiosqlite.Connection, record: BatchRecord, key: str | None, request: str
) -> None:
    await batch_table.insert_batch(db, record)
    if key is not None:
        await idempotency_table.add(db, key, request, record.id, record.created_at)
