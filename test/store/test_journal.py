"""The result journal: what was synced survives, what was not is cut, nothing is there twice."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.blendserve.store.journal import ResultJournal
from sglang.srt.blendserve.store.line_result import LineResult
from sglang.srt.blendserve.store.tally import Tally


def result(line: int, succeeded: bool = True, text: str = "x") -> LineResult:
    tally = Tally(int(succeeded), int(not succeeded), line, 1, 2, 0)
    return LineResult(line, tally, b'{"line":%d,"text":"%s"}\n' % (line, text.encode()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.journal"


def test_reopened_journal_has_every_result_and_their_sum(path: Path) -> None:
    journal = ResultJournal(path)
    journal.append([result(5), result(2, succeeded=False)])
    journal.sync()
    journal.append([result(3)])
    journal.sync()

    again = ResultJournal(path)

    assert list(again.lines()) == [2, 3, 5]
    assert again.read(2) == result(2, succeeded=False)
    assert again.tally == Tally(2, 1, 10, 3, 6, 0)
    assert 4 not in again
    with pytest.raises(KeyError):
        again.read(4)


def test_a_line_gets_one_result_only(path: Path) -> None:
    journal = ResultJournal(path)
    journal.append([result(1)])
    journal.sync()
    with pytest.raises(ValueError, match="two results"):
        journal.append([result(2), result(1)])
    with pytest.raises(ValueError, match="two results"):
        journal.append([result(3), result(3)])
    journal.append([result(4)])
    with pytest.raises(ValueError, match="two results"):
        journal.append([result(4)])  # not synced yet
    journal.sync()
    assert list(journal.lines()) == [1, 4]


@settings(max_examples=60, deadline=None)
@given(
    synced=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n")), max_size=4),
    tail=st.binary(max_size=80),
)
def test_any_unfinished_tail_is_cut(
    tmp_path_factory: pytest.TempPathFactory, synced: list[str], tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "results.journal"
    journal = ResultJournal(path)
    results = [result(line, text=text) for line, text in enumerate(synced, start=1)]
    journal.append(results)
    journal.sync()
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(tail)

    again = ResultJournal(path)

    assert [again.read(line) for line in again.lines()] == results
    assert path.stat().st_size == size


def test_every_cut_of_a_crashed_write_leaves_whole_results_only(path: Path) -> None:
    journal = ResultJournal(path)
    journal.append([result(1)])
    journal.sync()
    first = path.stat().st_size
    journal.append([result(2), result(3)])
    journal.sync()
    whole = path.read_bytes()
    second = whole.index(b"\n", first) + 1
    for size in range(first, len(whole) + 1):
        path.write_bytes(whole[:size])
        lines = list(ResultJournal(path).lines())
        assert lines == [1] + [2] * (size >= second) + [3] * (size == len(whole))


def test_a_damaged_record_costs_one_result_and_not_those_behind_it(path: Path) -> None:
    journal = ResultJournal(path)
    journal.append([result(line) for line in range(1, 6)])
    journal.sync()
    data = bytearray(path.read_bytes())
    data[data.index(b"\n", data.index(b'"line":2')) - 3] ^= 1
    path.write_bytes(data)

    again = ResultJournal(path)

    assert list(again.lines()) == [1, 3, 4, 5]
    again.append([result(2, text="again")])
    again.sync()
    assert [found.line for found in ResultJournal(path).results()] == [1, 2, 3, 4, 5]
    assert ResultJournal(path).read(2) == result(2, text="again")
    assert ResultJournal(path).read(5) == result(5)


def test_journals_hold_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    journals = [ResultJournal(tmp_path / str(n)) for n in range(20)]
    for journal in journals:
        journal.append([result(1)])
        journal.sync()
    assert len(os.listdir("/proc/self/fd")) == before
    assert journals[7].read(1) == result(1)


def test_zeros_where_a_power_cut_left_a_hole_are_cut(path: Path) -> None:
    journal = ResultJournal(path)
    journal.append([result(1)])
    journal.sync()
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(bytes(40) + b'"}\n')
    assert list(ResultJournal(path).lines()) == [1]
    assert path.stat().st_size == size


def test_a_full_disk_keeps_none_of_the_group_and_the_next_try_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = ResultJournal(path)
    journal.append([result(1)])
    journal.sync()
    size = path.stat().st_size
    pwrite = os.pwrite
    calls = []

    def fill_up(fd: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1:
            return pwrite(fd, data[:7], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", fill_up)
    journal.append([result(2)])
    with pytest.raises(OSError, match="No space left"):
        journal.sync()
    monkeypatch.undo()

    assert path.stat().st_size == size
    assert 2 in journal
    with pytest.raises(KeyError):
        journal.read(2)
    journal.append([result(3)])
    journal.sync()
    assert list(ResultJournal(path).lines()) == [1, 2, 3]
