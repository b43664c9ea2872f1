"""Bring back batches that the batch service put aside because its database did not know them.

That happens when the database was lost or damaged, or an old copy of it was put in place: results
of open batches lie in journals beside it, and the service keeps them in DIR/lost+found.

    sglang-blendserve recover                    # lists what is there
    sglang-blendserve recover BATCH_ID ...       # or --all

A batch that is brought back has its id, its input and all results it had. The next start of the
server on the directory answers what is left of it, within a completion window that begins now.
Stop the server first: one process at a time uses the directory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import aiosqlite
from pydantic import ValidationError

from sglang.srt.blendserve.batch_file.types import BatchFileError, BatchLine
from sglang.srt.blendserve.batch_file.validation import parse_lines
from sglang.srt.blendserve.refusals import Refusal
from sglang.srt.blendserve.server import batch_settings
from sglang.srt.blendserve.server.parameters import window_seconds
from sglang.srt.blendserve.store import batch_table, file_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.database import NewerSchema
from sglang.srt.blendserve.store.directory import Store, StoreUnusable, now
from sglang.srt.blendserve.store.disk import DirectoryInUse
from sglang.srt.blendserve.store.objects import FileObject, new_file_id
from sglang.srt.blendserve.store.workspace import Workspace

_WINDOW = "24h"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("batches", nargs="*", metavar="BATCH_ID", help="batches to bring back")
    parser.add_argument("--all", action="store_true", help="bring back all that can be")
    parser.add_argument(
        "--batch-dir",
        type=Path,
        metavar="DIR",
        help="the batch service's directory (default: that of launch_server)",
    )


def main(args: argparse.Namespace) -> int:
    """Bring batches back, or list them; return the exit status."""
    try:
        directory = args.batch_dir or batch_settings.current().directory
        if not directory.is_dir():
            raise StoreUnusable(
                f"there is no batch directory {directory}; name it with --batch-dir"
            )
        return asyncio.run(_recover(directory, args.batches, args.all))
    except (DirectoryInUse, NewerSchema, StoreUnusable, Refusal) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


async def _recover(directory: Path, wanted: list[str], everything: bool) -> int:
    store = Store(directory)
    try:
        await store.start()
        found = {workspace.folder.name: workspace for workspace in store.lost.batches()}
        if not wanted and not everything:
            _list(found, directory)
            return 0
        failed = False
        for batch_id in found if everything else wanted:
            try:
                if batch_id not in found:
                    raise NotRecoverable(f"there is none of that name in {directory}/lost+found")
                batch = await bring_back(store, found[batch_id])
            except NotRecoverable as error:
                print(f"{batch_id}: {error}", file=sys.stderr)
                failed = True
            else:
                print(f"{batch.id}: is back; the next start of the server goes on with it")
        return int(failed)
    finally:
        await store.close()


class NotRecoverable(Exception):
    """A batch cannot be brought back; the message says why."""


async def bring_back(store: Store, workspace: Workspace) -> BatchRecord:
    """Put a batch of ``lost+found`` back among the open ones; return it as the store has it now.

    Raises:
        NotRecoverable: its input is gone or is no batch file, or the store has that batch.
        OSError, sqlite3.Error: the disk is full; nothing is lost.
    """
    batch_id = workspace.folder.name
    if not workspace.input.exists():
        raise NotRecoverable(
            f"its input is gone, so nobody knows what its results answer. They lie, a line each, "
            f"in {workspace.journal}"
        )
    batch = _batch(workspace)

    async def insert(db: aiosqlite.Connection) -> None:
        try:
            await batch_table.get_batch(db, batch_id)
        except LookupError:
            pass
        else:
            raise NotRecoverable("the database has a batch of that id")
        if batch.input_file_id not in await file_table.states(db):
            content = store.files.path(batch.input_file_id)
            if not content.exists():
                os.link(place.input, content)
            size = content.stat().st_size
            file = FileObject(
                id=batch.input_file_id,
                bytes=size,
                created_at=now(),
                filename=f"{batch_id}_input.jsonl",
                purpose="batch",
                owner=batch.owner,
            )
            await file_table.insert_file(db, file, state="ready")
        await batch_table.insert_batch(db, batch)

    place = store.workspace(batch_id)
    if place.folder.exists():
        raise NotRecoverable(f"{place.folder} is in its place")
    # A crash before the row is there leaves what the next start puts aside again.
    store.lost.give_back(batch_id, place.folder)
    try:
        await store.db.write(insert)
    except NotRecoverable:
        store.lost.take(place)
        raise
    return batch


def _batch(workspace: Workspace) -> BatchRecord:
    """Return the batch as it is to begin again: as it was created, its window from now on.

    Raises:
        NotRecoverable: nothing says what endpoint it is for.
    """
    begins = now()
    try:
        made = BatchRecord.model_validate_json(workspace.about.read_bytes())
    except (OSError, ValidationError):  # from before there was such a file, or damaged
        return BatchRecord(
            id=workspace.folder.name,
            endpoint=_endpoint(workspace),
            input_file_id=new_file_id(),
            completion_window=_WINDOW,
            model=None,
            metadata=None,
            output_expires_after=None,
            created_at=begins,
            expires_at=begins + window_seconds(_WINDOW),
        )
    window = window_seconds(made.completion_window)
    return made.model_copy(update={"id": workspace.folder.name, "expires_at": begins + window})


def _endpoint(workspace: Workspace) -> str:
    with open(workspace.input, "rb") as stream:
        try:
            lines: Iterator[object] = parse_lines(stream)
            return next(line.url for line in lines if isinstance(line, BatchLine))
        except (StopIteration, BatchFileError) as error:
            raise NotRecoverable("no line of its input is a valid request") from error


def _list(found: dict[str, Workspace], directory: Path) -> None:
    if not found:
        print(f"{directory}/lost+found holds no batch.")
    for batch_id, workspace in found.items():
        journal = workspace.journal
        size = journal.stat().st_size if journal.exists() else 0
        print(f"{batch_id}  {size} bytes of results")
