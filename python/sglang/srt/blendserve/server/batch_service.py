"""Batches: what ``/v1/batches`` does, without HTTP."""

from __future__ import annotations

from collections.abc import Iterable

import aiosqlite

from sglang.srt.blendserve.allowed_hosts import AllowedHosts
from sglang.srt.blendserve.server.batch_creation import BatchCreation, Created
from sglang.srt.blendserve.server.file_service import FileService
from sglang.srt.blendserve.server.forecasts import Outlook, Prices, prices_of
from sglang.srt.blendserve.server.openai_errors import ApiError, invalid, shortened
from sglang.srt.blendserve.server.parameters import (
    ChangeBatch,
    CreateBatch,
    ListBatches,
    ReadResults,
)
from sglang.srt.blendserve.server.partial_results import ErrorKinds, Page, PartialResults
from sglang.srt.blendserve.server.runner import Runner
from sglang.srt.blendserve.server.served_engine import ServedEngine
from sglang.srt.blendserve.server.users import Users, may_see, owner
from sglang.srt.blendserve.store import batch_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.database import Statements
from sglang.srt.blendserve.store.directory import Store, now
from sglang.srt.blendserve.store.objects import (
    BatchObject,
    BatchStatus,
    ListPage,
    is_batch_id,
)
from sglang.srt.blendserve.store.tally import Tally


class BatchService:
    """Creates, lists, shows, changes and cancels batches of the store."""

    def __init__(
        self,
        store: Store,
        files: FileService,
        engine: ServedEngine,
        runner: Runner,
        webhooks: AllowedHosts,
        users: Users,
    ) -> None:
        """``webhooks``: whom batches may have called."""
        self._store, self._runner, self._engine = store, runner, engine
        self._partial = PartialResults(store, runner)
        self._prices: Prices = {}
        self._priced: tuple[int, bool] | None = None
        self._creation = BatchCreation(store, files, engine, webhooks, users)

    async def create(self, wanted: CreateBatch, key: str | None = None) -> BatchObject:
        """Create a batch and run it; arguments and errors as in `BatchCreation.create`."""
        return await self._started(await self._creation.create(wanted, key))

    async def retry(self, batch_id: str, key: str | None = None) -> BatchObject:
        """Create a batch of the lines that have failed in another, which has ended, and run it.

        Args:
            key: as in `create`.

        Raises:
            ApiError: 404; 409, it has not ended, no line of it has failed, or its input is gone.
        """
        return await self._started(await self._creation.retry(await self._find(batch_id), key))

    async def list(self, query: ListBatches) -> ListPage[BatchObject]:
        """Return a page of batches, newest first.

        Raises:
            ApiError: 400, ``after`` names no batch.
        """
        try:
            records, more = await self._store.db.read(
                lambda db: batch_table.list_batches(
                    db, limit=query.limit, after=query.after, owner=owner()
                )
            )
        except LookupError as error:
            raise invalid("No such batch to list after.", "after") from error
        outlook = await self._outlook(records)
        return ListPage.of([self._shown(record, outlook) for record in records], more)

    async def get(self, batch_id: str) -> BatchObject:
        """Return a batch's object.

        Raises:
            ApiError: 404.
        """
        return await self._show(await self._find(batch_id))

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
        return await self._show(record)

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
        return await self._show(record)

    async def _write(self, batch_id: str, change: Statements[BatchRecord]) -> BatchRecord:
        """Return the batch as ``change`` leaves it.

        Raises:
            ApiError: 404.
        """
        try:
            return await self._store.db.write(change)
        except LookupError as error:
            raise _no_batch(batch_id) from error

    async def _started(self, created: Created) -> BatchObject:
        if created.is_new:
            self._runner.add(created.record)
        return await self._show(created.record)

    async def _find(self, batch_id: str) -> BatchRecord:
        try:
            return await self._store.db.read(lambda db: _get(db, batch_id))
        except LookupError as error:
            raise _no_batch(batch_id) from error

    async def _show(self, record: BatchRecord) -> BatchObject:
        return self._shown(record, await self._outlook([record]))

    async def _outlook(self, records: Iterable[BatchRecord]) -> Outlook:
        """What is expected, if one of ``records`` is open."""
        if all(record.done for record in records):
            return self._runner.outlook({})
        # Until another batch ends, or it becomes known what work costs, prices stay as they are.
        state = self._runner.ended, self._engine.work(Tally(completed=1)) is None
        if self._priced != state:
            ended = await self._store.db.read(batch_table.last_completed)
            self._prices, self._priced = prices_of(ended, self._engine.work), state
        return self._runner.outlook(self._prices)

    def _shown(self, record: BatchRecord, outlook: Outlook) -> BatchObject:
        problem = self._runner.problem(record.id)
        shown = record.model_copy(update={"errors": [*problem, *record.errors]}).to_api()
        used = round(self._runner.gpu_seconds(record), 3)
        forecast = None if record.done else outlook.of(record)
        return shown.model_copy(update={"forecast": forecast, "gpu_seconds": used})


def _no_batch(batch_id: str) -> ApiError:
    message = f"No batch found with id '{shortened(batch_id)}'."
    return ApiError(404, message, param="batch_id")


async def _get(db: aiosqlite.Connection, batch_id: str) -> BatchRecord:
    """Return the batch.

    Raises:
        LookupError: there is none, it is another user's, or this is no batch's id.
    """
    if not is_batch_id(batch_id):
        raise LookupError(batch_id)
    found = await batch_table.get_batch(db, batch_id)
    if not may_see(found.owner):
        raise LookupError(batch_id)
    return found
