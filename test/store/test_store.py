"""The batch directory: one user at a time, migrations, and what a crash leaves behind."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite
import pytest

from sglang.srt.blendserve.store import batch_table, database, disk, file_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.database import NewerSchema
from sglang.srt.blendserve.store.directory import Store, StoreUnusable
from sglang.srt.blendserve.store.disk import DirectoryInUse
from sglang.srt.blendserve.store.objects import (
    FileObject,
    is_batch_id,
    is_file_id,
    new_batch_id,
    new_file_id,
)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def started(directory: Path) -> AsyncIterator[Store]:
    """A batch directory in use."""
    store = Store(directory)
    try:
        await store.start()
        yield store
    finally:
        await store.close()


def new_file(size: int = 0, expires_at: int | None = None) -> FileObject:
    return FileObject(
        id=new_file_id(),
        bytes=size,
        created_at=1,
        expires_at=expires_at,
        filename="in.jsonl",
        purpose="batch",
    )


async def count(db: aiosqlite.Connection) -> int:
    return len(list(await db.execute_fetchall("SELECT * FROM files")))


async def put(store: Store, content: bytes, expires_at: int | None = None) -> FileObject:
    file = new_file(len(content), expires_at)
    writer = store.files.new(file.id)
    writer.write(content)
    writer.commit()
    await store.db.write(lambda db: file_table.insert_file(db, file, state="ready"))
    return file


async def create_batch(store: Store, file: FileObject) -> str:
    batch_id = new_batch_id()
    store.workspace(batch_id).create(store.files.path(file.id), "{}")
    batch = BatchRecord(
        id=batch_id,
        endpoint="/v1/completions",
        input_file_id=file.id,
        completion_window="24h",
        metadata=None,
        output_expires_after=None,
        model="m",
        created_at=1,
        expires_at=2,
    )
    await store.db.write(lambda db: batch_table.insert_batch(db, batch))
    return batch_id


async def test_second_process_is_refused_until_the_first_is_gone(directory: Path) -> None:
    code = (  # the module alone: importing sglang takes seconds
        "import sys, pathlib, runpy\n"
        "lock = runpy.run_path(sys.argv[1])['DirectoryLock'](pathlib.Path(sys.argv[2]))\n"
        "print('locked', flush=True); sys.stdin.read()\n"
    )
    directory.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", code, disk.__file__, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(DirectoryInUse, match=rf"process {holder.pid}.*--batch-dir"):
        Store(directory)
    holder.kill()
    holder.wait()
    await Store(directory).close()


async def test_same_process_is_refused_too(directory: Path) -> None:
    first = Store(directory)
    with pytest.raises(DirectoryInUse):
        Store(directory)
    await first.close()
    await Store(directory).close()


async def test_a_database_from_the_future_is_left_alone(directory: Path) -> None:
    await Store(directory).close()
    with sqlite3.connect(directory / "blendserve.db") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(NewerSchema, match=r"version 99.*Upgrade"):
        Store(directory)
    with sqlite3.connect(directory / "blendserve.db") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)


async def test_a_failed_migration_changes_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(directory) as first:
        file = await put(first, b"kept")
    broken = (*database.MIGRATIONS, "CREATE TABLE extra (a); CREATE TABLE extra (a);")
    monkeypatch.setattr(database, "MIGRATIONS", broken)
    with pytest.raises(StoreUnusable, match="already exists"):
        Store(directory)
    monkeypatch.undo()
    async with started(directory) as again:
        assert await again.db.read(lambda db: file_table.get_file(db, file.id, 1)) == file


def test_a_file_in_place_of_the_directory_is_a_clear_error(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(StoreUnusable, match=r"cannot be used.*--batch-dir"):
        Store(place)


async def test_something_else_in_place_of_the_database_is_a_clear_error(directory: Path) -> None:
    directory.mkdir()
    (directory / "blendserve.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreUnusable, match="not a database"):
        Store(directory)
    (directory / "blendserve.db").unlink()
    await Store(directory).close()  # the lock was given back


async def test_foreign_keys_hold(store: Store) -> None:
    ghost = new_file()
    store.files.new(ghost.id).commit()
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        await create_batch(store, ghost)


async def test_a_failed_transaction_leaves_the_database_usable(store: Store) -> None:
    async def fail(db: aiosqlite.Connection) -> None:
        await file_table.insert_file(db, new_file(), state="ready")
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        await store.db.write(fail)
    assert await store.db.read(count) == 0
    await put(store, b"next")


@pytest.mark.parametrize("before", ["first statement", "second statement", "commit"])
async def test_a_cancelled_write_changes_all_or_nothing(store: Store, before: str) -> None:
    def cancel(place: str) -> None:
        if place == before:  # it arrives while what comes next is on the database's thread
            task.cancel()

    async def change(db: aiosqlite.Connection) -> None:
        cancel("first statement")
        await file_table.insert_file(db, new_file(), state="ready")
        cancel("second statement")
        await file_table.insert_file(db, new_file(), state="ready")
        cancel("commit")

    task = asyncio.create_task(store.db.write(change))
    with pytest.raises(asyncio.CancelledError):
        await task
    changed = await store.db.read(count)
    assert changed in ((0, 2) if before == "commit" else (0,))
    await put(store, b"next")
    assert await store.db.read(count) == changed + 1


async def test_writes_at_once_do_not_mix_and_no_read_sees_half_of_one(store: Store) -> None:
    async def change(db: aiosqlite.Connection) -> None:
        for _ in range(2):
            await file_table.insert_file(db, new_file(), state="ready")

    write, read = store.db.write, store.db.read
    found = await asyncio.gather(write(change), read(count), write(change), read(count))
    assert found == [None, 2, None, 4]


async def test_closing_twice_ends_all_threads(directory: Path) -> None:
    before = set(threading.enumerate())
    async with started(directory) as store:
        await put(store, b"kept")
        await store.close()
    with pytest.raises(ValueError, match="Connection closed"):
        await store.db.read(count)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


async def test_recovery_clears_what_a_crash_cut_short_and_nothing_else(directory: Path) -> None:
    async with started(directory) as store:
        kept = await put(store, b"kept")
        batch_id = await create_batch(store, kept)
        deleted = await put(store, b"deleted")
        await store.db.write(lambda db: file_table.delete(db, deleted.id))  # no unlink: a crash
        pending = new_file(3)
        await store.db.write(lambda db: file_table.insert_file(db, pending, state="pending"))
        writer = store.files.new(pending.id)
        writer.write(b"whole")
        writer.commit()  # crash before the row is ready
        store.files.new(new_file_id()).write(b"torn")  # crash in the middle of an upload
        orphan = store.workspace(new_batch_id())
        orphan.create(store.files.path(kept.id), "{}")  # crash before the batch's row

    async with started(directory) as again:
        assert again.files.ids() == {kept.id, pending.id}
        assert again.files.path(kept.id).read_bytes() == b"kept"
        completed = await again.db.read(lambda db: file_table.get_file(db, pending.id, 1))
        assert completed == pending.model_copy(update={"bytes": 5})
        assert again.workspace(batch_id).input.read_bytes() == b"kept"
        assert not orphan.folder.exists()


async def test_a_batch_keeps_its_input_when_the_file_is_deleted(store: Store) -> None:
    file = await put(store, b"input")
    batch_id = await create_batch(store, file)
    store.files.delete(file.id)
    assert store.workspace(batch_id).input.read_bytes() == b"input"


async def test_files_expire(store: Store) -> None:
    early = await put(store, b"early", expires_at=10)
    late = await put(store, b"late", expires_at=2**40)
    assert await store.db.read(lambda db: file_table.get_file(db, early.id, 9)) == early
    assert await store.db.read(lambda db: file_table.get_file(db, early.id, 10)) is None
    await store.delete_expired_files()
    assert store.files.ids() == {late.id}


def test_ids_cannot_name_a_path() -> None:
    assert is_file_id(new_file_id())
    assert is_batch_id(new_batch_id())
    good = new_file_id()
    for bad in ("", "..", "../x", f"{good}/..", f"{good}\n", f" {good}", good.upper(), good + "0"):
        assert not is_file_id(bad)
        assert not is_batch_id(bad)
    assert len({new_file_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("earlier", [False, True])
async def test_content_is_private_in_any_directory(directory: Path, earlier: bool) -> None:
    directory.mkdir(mode=0o755)
    if earlier:  # made by a version that left it to the umask
        for folder in ("files", "batches"):
            (directory / folder).mkdir(mode=0o755)
        (directory / "blendserve.db").touch(0o644)
    async with started(directory) as store:
        await create_batch(store, await put(store, b"secret"))
        entries = list(directory.rglob("*"))
        assert {path.name for path in entries} >= {"blendserve.db-wal", "input.jsonl"}
        assert [path for path in entries if os.stat(path).st_mode & 0o077] == []


async def test_a_database_with_a_broken_page_is_refused_with_what_to_do(directory: Path) -> None:
    async with started(directory) as store:
        for _ in range(200):
            await put(store, b"x")
    database = directory / "blendserve.db"
    content = bytearray(database.read_bytes())
    content[4096 * 3 : 4096 * 4] = os.urandom(4096)
    database.write_bytes(content)
    with pytest.raises(StoreUnusable, match=r"is damaged.*mv .*recover"):
        Store(directory)
    assert database.read_bytes() == content


async def test_a_clock_that_steps_back_does_not_show(store: Store) -> None:
    batch_id = await create_batch(store, await put(store, b"x"))
    seconds = {"in_progress": 100, "finalizing": 50, "completed": 7}
    for status, at in seconds.items():
        await store.db.write(lambda db, s=status, a=at: batch_table.enter(db, batch_id, s, a))
    batch = await store.db.read(lambda db: batch_table.get_batch(db, batch_id))
    assert (batch.in_progress_at, batch.finalizing_at, batch.completed_at) == (100, 100, 100)
