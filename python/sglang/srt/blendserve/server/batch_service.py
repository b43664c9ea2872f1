"""Batches: what ``/v1/batches`` does, without HTTP."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from hashlib import blake2b

import aiosqlite

from sglang.srt.blendserve.batch_file.failed_lines import failed_lines
from sglang.srt.blendserve.server.file_service import FileService
from sglang.srt.blendserve.server.openai_errors import ApiError, invalid, shortened
from sglang.srt.blendserve.server.parameters import (
    ChangeBatch,
    CreateBatch,
    ExpiresAfter,
    ListBatches,
    ReadResults,
    window_seconds,
)
from sglang.srt.blendserve.server.partial_results import ErrorKinds, Page, PartialResults
from sglang.srt.blendserve.server.runner import Runner
from sglang.srt.blendserve.server.served_engine import ServedEngine
from sglang.srt.blendserve.server.webhook_rules import NotAllowed, WebhookRules
from sglang.srt.blendserve.store import batch_table, idempotency_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.database import Statements
from sglang.srt.blendserve.store.directory import Store, now
from sglang.srt.blendserve.store.objects import (
    BatchObject,
    BatchStatus,
    Forecast,
    ListPage,
    is_batch_id,
    new_batch_id,
)

_MOST_METADATA = 16


class BatchService:
    """Creates, lists, shows, changes and cancels batches of the store."""

    def __init__(
        self,
        store: Store,
        files: FileService,
        engine: ServedEngine,
        runner: Runner,
        webhooks: WebhookRules,
    ) -> None:
        """``webhooks``: whom batches may have called."""
        self._store, self._files, self._engine, self._runner = store, files, engine, runner
        self._partial, self._webhooks = PartialResults(store, runner), webhooks

    async def create(self, wanted: CreateBatch, key: str | None = None) -> BatchObject:
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
        request = _digest(wanted.model_dump_json())
        if key is not None and (known := await self._created_by(key, request)) is not None:
            return known
        return await self._create(wanted, key, request)

    async def _create(self, wanted: CreateBatch, key: str | None, request: str) -> BatchObject:
        if wanted.endpoint not in self._engine.endpoints:
            has = ", ".join(sorted(self._engine.endpoints))
            raise invalid(
                f"The model of this server does not do {wanted.endpoint}; it does {has}.",
                "endpoint",
                "invalid_value",
            )
        store, batch_id, created_at = self._store, new_batch_id(), now()
        input_id = await self._check_input(wanted.input_file_id)
        if wanted.webhook_url is not None:
            try:
                self._webhooks.check(wanted.webhook_url)
            except NotAllowed as error:
                message = f"webhook_url cannot be called: {error}."
                raise invalid(message, "webhook_url", "invalid_value") from error
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
        self._runner.add(record)
        return record.to_api()

    async def list(self, query: ListBatches) -> ListPage[BatchObject]:
        """Return a page of batches, newest first.

        Raises:
            ApiError: 400, ``after`` names no batch.
        """
        try:
            records, more = await self._store.db.read(
                lambda db: batch_table.list_batches(db, limit=query.limit, after=query.after)
            )
        except LookupError as error:
            raise invalid("No such batch to list after.", "after") from error
        return ListPage.of([self._show(record) for record in records], more)

    async def get(self, batch_id: str) -> BatchObject:
        """Return a batch's object.

        Raises:
            ApiError: 404.
        """
        return self._show(await self._find(batch_id))

    async def change(self, batch_id: str, wanted: ChangeBatch) -> BatchObject:
        """Change a batch's priority, pause it, or let it go on.

        Paused, what it has in the engine ends, and nothing else of it goes in; its completion
        window runs on.

        Raises:
            ApiError: 404; 409, the batch has ended or is about to.
        """

        async def change(db: aiosqlite.Connection) -> BatchRecord:
            record = await _get(db, batch_id)
            if record.status not in ("validating", "in_progress"):
                return record
            priority = record.priority if wanted.priority is None else wanted.priority
            paused_at = record.paused_at
            if wanted.paused is not None:
                paused_at = (paused_at or now()) if wanted.paused else None
            await batch_table.set_order(db, batch_id, priority, paused_at)
            return await _get(db, batch_id)

        record = await self._write(batch_id, change)
        if record.status not in ("validating", "in_progress"):
            raise ApiError(
                409,
                f"Cannot change a batch with status '{record.status}'.",
                param="batch_id",
                code="batch_not_changeable",
            )
        self._runner.change(record)
        return self._show(record)

    async def results(self, batch_id: str, query: ReadResults) -> tuple[Page, BatchStatus]:
        """Return results of a batch that has not ended, and its status.

        Raises:
            ApiError: 400, 404, 409; see `PartialResults.page`.
        """
        record = await self._find(batch_id)
        return await self._partial.page(record, query.after, query.limit), record.status

    async def errors(self, batch_id: str) -> ErrorKinds:
        """Return what has failed in a batch, so far or in all, by kind.

        Raises:
            ApiError: 404.
        """
        return await self._partial.errors(await self._find(batch_id))

    async def retry(self, batch_id: str, key: str | None = None) -> BatchObject:
        """Create a batch of the lines that have failed in another, which has ended.

        Args:
            key: as in `create`.

        Raises:
            ApiError: 404; 409, it has not ended, no line of it has failed, or its input is gone.
        """
        record = await self._find(batch_id)
        request = _digest(f"retry {batch_id}")
        if key is not None and (known := await self._created_by(key, request)) is not None:
            return known
        if not record.done:
            raise _not_retryable(f"it has not ended ({record.status})")
        if record.error_file_id is None:
            raise _not_retryable("no line of it has failed")
        paths = []
        for file_id in (record.input_file_id, record.error_file_id):
            try:
                paths.append((await self._files.content(file_id))[1])
            except ApiError as error:
                raise _not_retryable(f"its file {file_id} is gone") from error

        def lines() -> Iterator[bytes]:
            with paths[0].open("rb") as requests, paths[1].open("rb") as errors:
                yield from failed_lines(requests, errors)

        file = await self._files.add(f"retry-{batch_id}.jsonl", lines, paths[0].stat().st_size)
        keep = record.output_expires_after
        metadata = record.metadata or {}
        if len(metadata) < _MOST_METADATA or "retry_of" in metadata:
            metadata = {**metadata, "retry_of": batch_id}
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
        created: BatchObject | None = None
        try:
            created = await self._create(wanted, key, request)
        finally:
            if created is None or created.input_file_id != file.id:  # the same call, at once
                await self._files.delete(file.id)
        return created

    async def cancel(self, batch_id: str) -> BatchObject:
        """Begin to cancel a batch; results it has are kept. Again, it changes nothing.

        Raises:
            ApiError: 404; 409, the batch has ended otherwise.
        """

        async def change(db: aiosqlite.Connection) -> BatchRecord:
            record = await _get(db, batch_id)
            if not record.done and record.status != "cancelling":
                await batch_table.enter(db, batch_id, "cancelling", now())
            return await _get(db, batch_id)

        record = await self._write(batch_id, change)
        if record.status not in ("cancelling", "cancelled"):
            raise ApiError(
                409,
                f"Cannot cancel a batch with status '{record.status}'.",
                param="batch_id",
                code="batch_not_cancellable",
            )
        self._runner.cancel(record)
        return self._show(record)

    async def _write(self, batch_id: str, change: Statements[BatchRecord]) -> BatchRecord:
        """Return the batch as ``change`` leaves it.

        Raises:
            ApiError: 404.
        """
        try:
            return await self._store.db.write(change)
        except LookupError as error:
            raise _no_batch(batch_id) from error

    async def _check_input(self, file_id: str) -> str:
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
        return file.id

    def _still_called(self, url: str | None) -> str | None:
        """Return who was to be called, None if this server does not call it any more."""
        try:
            if url is not None:
                self._webhooks.check(url)
        except NotAllowed:
            return None
        return url

    async def _created_by(self, key: str, request: str) -> BatchObject | None:
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
        return await self.get(found[1])

    async def _find(self, batch_id: str) -> BatchRecord:
        try:
            return await self._store.db.read(lambda db: _get(db, batch_id))
        except LookupError as error:
            raise _no_batch(batch_id) from error

    def _show(self, record: BatchRecord) -> BatchObject:
        problem = self._runner.problem(record.id)
        shown = record.model_copy(update={"errors": [*problem, *record.errors]}).to_api()
        seconds = None if record.done else self._runner.forecast(record.id)
        if seconds is None:
            return shown
        ends_at = now() + round(seconds)
        forecast = Forecast(ends_at=ends_at, in_time=ends_at <= record.expires_at)
        return shown.model_copy(update={"forecast": forecast})


def _no_input(file_id: str) -> ApiError:
    return invalid(f"No such File object: {file_id[:80]}", "input_file_id", "file_not_found")


def _no_batch(batch_id: str) -> ApiError:
    message = f"No batch found with id '{shortened(batch_id)}'."
    return ApiError(404, message, param="batch_id")


def _not_retryable(why: str) -> ApiError:
    return ApiError(409, f"Cannot retry: {why}.", param="batch_id", code="batch_not_retryable")


def _digest(request: str) -> str:
    return blake2b(request.encode(), digest_size=16).hexdigest()


async def _insert(
    db: aiosqlite.Connection, record: BatchRecord, key: str | None, request: str
) -> None:
    await batch_table.insert_batch(db, record)
    if key is not None:
        await idempotency_table.add(db, key, request, record.id, record.created_at)


async def _get(db: aiosqlite.Connection, batch_id: str) -> BatchRecord:
    """Return the batch.

    Raises:
        LookupError: there is none, or this is no batch's id.
    """
    if not is_batch_id(batch_id):
        raise LookupError(batch_id)
    return await batch_table.get_batch(db, batch_id)
