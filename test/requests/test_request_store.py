"""Columns are read as they were written, and a torn store is never taken for a whole one.

pytest test/requests/test_request_store.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.batch_file.types import ErrorCode, LineError
from sglang.srt.blendserve.requests.columns import (
    COLUMNS,
    ERRORS_FILE,
    NAMES_FILE,
    ColumnWriter,
    Flag,
    all_files,
    column_file,
)
from sglang.srt.blendserve.requests.disk_budget import NoRoom, check_room
from sglang.srt.blendserve.requests.request_store import (
    SEAL_FILE,
    RequestStore,
    delete_store,
    open_whole,
    seal,
)

OF = {"input": "a", "model": "b"}

ROW = st.tuples(st.lists(st.integers(0, 2**31 - 1), max_size=6), st.booleans(), st.integers(0, 9))
CHUNKS = st.lists(st.lists(ROW, max_size=5), max_size=5)


def columns(chunk: list[tuple[list[int], bool, int]], first: int) -> tuple[dict[str, Any], Any]:
    """Arrays of some rows, the first of line ``first``."""
    count = len(chunk)
    given: dict[str, Any] = {
        name: np.full(count, 3, dtype=dtype) for name, dtype in COLUMNS.items() if name != "offset"
    }
    given["line"] = np.arange(first, first + count, dtype=np.int64)
    given["length"] = np.array([len(ids) for ids, _, _ in chunk], dtype=np.int32)
    given["cap"] = np.array([cap for _, _, cap in chunk], dtype=np.int32)
    held = [(Flag.EXACT, Flag.MEDIA)[cap % 2] if exact else 0 for _, exact, cap in chunk]
    given["flags"] = np.array(held, dtype=np.uint8)
    ids = [token for row, exact, _ in chunk if exact for token in row]
    return given, np.array(ids, dtype=np.int32)


def written(folder: Path, chunks: list[list[tuple[list[int], bool, int]]]) -> ColumnWriter:
    """A writer that has written the chunks."""
    writer = ColumnWriter(folder)
    for chunk in chunks:
        writer.append(*columns(chunk, writer.rows + 1))
    return writer


def whole(folder: Path) -> RequestStore:
    """A small store, sealed."""
    writer = written(folder, [[([1, 2, 3], True, 5), ([], False, 6)], [([4], True, 7)]])
    seal(folder, OF, writer.sync())
    writer.close()
    store = open_whole(folder, OF)
    assert store is not None
    return store


@given(CHUNKS)
def test_rows_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[list[tuple[list[int], bool, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    writer = ColumnWriter(folder)
    store = RequestStore(folder)
    so_far: list[tuple[list[int], bool, int]] = []
    for chunk in chunks:
        writer.append(*columns(chunk, writer.rows + 1))
        so_far += chunk
        assert store.ready == len(so_far)
        for row, (ids, exact, _) in enumerate(so_far):
            assert store.tokens(row).tolist() == (ids if exact else [])
        read = store.columns()
        assert read["line"].tolist() == list(range(1, len(so_far) + 1))
        assert read["length"].tolist() == [len(ids) for ids, _, _ in so_far]
        assert read["cap"].tolist() == [cap for _, _, cap in so_far]
    assert [p.tolist() for p in store.prompts()] == [
        ids if exact else [] for ids, exact, _ in so_far
    ]
    assert np.array_equal(writer.read("cap"), store.column("cap"))
    seal(folder, OF, writer.sync())
    writer.close()
    store.close()
    again = open_whole(folder, OF)
    assert again is not None
    assert again.ready == len(so_far)
    again.close()


def test_columns_are_views_of_the_files_and_cannot_be_written(tmp_path: Path) -> None:
    store = whole(tmp_path)
    for array in (*store.columns().values(), store.tokens(0), *store.prompts()):
        assert not array.flags.owndata or not array.size
        assert not array.flags.writeable or not array.size
    # Views of one mapping, not a copy each.
    assert np.shares_memory(store.column("cap"), store.column("cap"))
    assert np.shares_memory(store.tokens(0), store.prompts()[0])
    with pytest.raises(ValueError, match="read-only"):
        store.column("cap")[0] = 1


def test_what_was_handed_out_outlives_the_store(tmp_path: Path) -> None:
    store = whole(tmp_path)
    tokens = store.tokens(0)
    store.close()
    delete_store(tmp_path)
    assert tokens.tolist() == [1, 2, 3]
    assert not tmp_path.exists()


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    whole(tmp_path).close()
    (tmp_path / "mine").write_text("x")
    delete_store(tmp_path)
    delete_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_store_of_something_else_is_not_taken(tmp_path: Path) -> None:
    whole(tmp_path).close()
    assert open_whole(tmp_path, {**OF, "input": "other"}) is None
    assert open_whole(tmp_path, {"input": "a"}) is None
    assert open_whole(tmp_path / "nowhere", OF) is None


@pytest.mark.parametrize("name", [*all_files(), SEAL_FILE])
@pytest.mark.parametrize("how", ["gone", "cut", "longer", "changed"])
def test_a_torn_store_is_not_whole(tmp_path: Path, name: str, how: str) -> None:
    writer = written(tmp_path, [[([1, 2, 3], True, 5), ([4], True, 6)]])
    writer.append_text(ERRORS_FILE, b"{}\n")
    writer.append_text(NAMES_FILE, b"{}\n")
    seal(tmp_path, OF, writer.sync())
    writer.close()
    store = open_whole(tmp_path, OF)
    assert store is not None
    store.close()
    path = tmp_path / name
    content = path.read_bytes()
    torn = {"cut": content[:-1], "longer": content + b"}", "changed": b"\x7f" + content[1:]}
    path.write_bytes(torn[how]) if how != "gone" else path.unlink()
    assert open_whole(tmp_path, OF) is None


def test_a_store_that_is_not_sealed_is_not_whole(tmp_path: Path) -> None:
    writer = written(tmp_path, [[([1], True, 5)]])
    writer.sync()
    writer.close()
    assert open_whole(tmp_path, OF) is None


def test_what_a_full_disk_has_cut_short_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = written(tmp_path, [[([1, 2], True, 5)]])
    write = os.pwrite
    room = 0

    def full(fd: int, data: memoryview, position: int) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        room -= 1
        return write(fd, data[:1], position)

    chunk = columns([([7, 8, 9], True, 1), ([6], True, 2)], 2)
    for tries in range(3):
        room = 9 * tries
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(OSError, match="No space"):
                writer.append(*chunk)
        store = RequestStore(tmp_path)
        assert store.ready == 1
        assert store.tokens(0).tolist() == [1, 2]
    writer.append(*chunk)
    assert [prompt.tolist() for prompt in store.prompts()] == [[1, 2], [7, 8, 9], [6]]
    seal(tmp_path, OF, writer.sync())
    assert open_whole(tmp_path, OF) is not None


def test_flags_change_and_the_last_error_of_a_line_counts(tmp_path: Path) -> None:
    writer = written(tmp_path, [[([1], True, 5), ([2], True, 5), ([3], True, 5)]])
    writer.set_flags(np.array([1, 2]), np.array([Flag.BAD, Flag.EXACT | Flag.HELD]))
    for message in ("one", "two"):
        error = LineError(code=ErrorCode.INVALID_VALUE, message=message, line=2)
        writer.append_text(ERRORS_FILE, error.model_dump_json().encode() + b"\n")
    store = RequestStore(tmp_path)
    assert store.usable().tolist() == [0]
    assert {line: error.message for line, error in store.errors().items()} == {2: "two"}


def test_a_store_that_does_not_fit_is_refused_first(tmp_path: Path) -> None:
    check_room(tmp_path / "a" / "b", 1000, 1, "Free some.")
    with pytest.raises(NoRoom) as refused:
        check_room(tmp_path / "a" / "b", 1 << 60, 1, "Give another folder with --x.")
    message = str(refused.value)
    assert str(tmp_path / "a" / "b") in message
    assert message.endswith("Give another folder with --x.")
    assert (tmp_path / "a").exists() is False


def test_the_files_are_their_owner_s_alone(tmp_path: Path) -> None:
    whole(tmp_path).close()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    assert (tmp_path / column_file("cap")).stat().st_size == 3 * 4
