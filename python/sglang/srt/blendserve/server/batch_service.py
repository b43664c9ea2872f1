"""Batches: what ``/v1/batches`` does, without HTTP."""

from __future__ import annotations

import aiosqlite

from sglang.srt.blendserve.server.file_service import FileService
from sglang.srt.blendserve.server.openai_errors import ApiError, invalid, shortened
from sglang.srt.blendserve.server.parameters import (
    ChangeBatch,
    CreateBatch,
    ListBatches,
    window_seconds,
)
from sglang.srt.blendserve.server.runner import Runner
from sglang.srt.blendserve.server.served_engine import ServedEngine
from sglang.srt.blendserve.store import batch_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.database import Statements
from sglang.srt.blendserve.store.directory import Store, now
from sglang.srt.blendserve.store.objects import (
    BatchObject,
    ListPage,
    is_batch_id,
    new_batch_id,
)


class BatchService:
    """Creates, lists, shows, changes and cancels batches of the store."""

    def __init__(
        self, store: Store, files: FileService, engine: ServedEngine, runner: Runner
    ) -> None:
        self._store, self._files, self._engine, self._runner = store, files, engine, runner

    async def create(self, wanted: CreateBatch) -> BatchObject:
        """Create a batch; when this returns it survives any crash.

        Raises:
            ApiError: 400, no such input file, not one for batches, or an endpoint that the
                server's model does not have.
            OSError, sqlite3.Error: the disk is full; nothing is stored.
        """
        if wanted.endpoint not in self._engine.endpoints:
            has = ", ".join(sorted(self._engine.endpoints))
            raise invalid(
                f"The model of this server does not do {wanted.endpoint}; it does {has}.",
                "endpoint",
                "invalid_value",
            )
        store, batch_id, created_at = self._store, new_batch_id(), now()
        input_id = await self._check_input(wanted.input_file_id)
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
        )
        about = record.model_dump_json()
        try:
            await store.io(lambda: workspace.create(store.files.path(input_id), about))
        except FileNotFoundError as error:  # deleted just now
            raise _no_input(input_id) from error
        try:
            await store.db.write(lambda db: batch_table.insert_batch(db, record))
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
        try:
            return self._show(await self._store.db.read(lambda db: _get(db, batch_id)))
        except LookupError as error:
            raise _no_batch(batch_id) from error

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

    def _show(self, record: BatchRecord) -> BatchObject:
        problem = self._runner.problem(record.id)
        return record.model_copy(update={"errors": [*problem, *record.errors]}).to_api()


def _no_input(file_id: str) -> ApiError:
    return invalid(f"No such File object: {file_id[:80]}", "input_file_id", "file_not_found")


def _no_batch(batch_id: str) -> ApiError:
    message = f"No batch found with id '{shortened(batch_id)}'."
    return ApiError(404, message, param="batch_id")


async def _get(db: aiosqlite.Connection, batch_id: str) -> BatchRecord:
    """Return the batch.

    Raises:
        LookupError: there is none, or this is no batch's id.
    """
    if not is_batch_id(batch_id):
        raise LookupError(batch_id)
    return await batch_table.get_batch(db, batch_id)
