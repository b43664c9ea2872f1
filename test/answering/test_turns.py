"""Who may be in the engine together: `EngineTurns`, and the record on the disk behind it."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from sglang.srt.blendserve.answering.turns import EngineTurns
from sglang.srt.blendserve.store.engine_record import DOUBTFUL_ENDS, End, EngineRecord

pytestmark = pytest.mark.anyio


class Engine:
    """Notes who is in it, and holds each line for a few turns of the event loop."""

    def __init__(self, turns: EngineTurns, seed: int) -> None:
        self.turns, self.random = turns, random.Random(seed)
        self.inside: dict[str, int] = {}
        self.order: list[str] = []

    async def run(self, name: str, group: int) -> None:
        await self.turns.enter(group)
        self.inside[name] = group
        self.order.append(name)
        groups = [g for g in self.inside.values() if g]
        if groups:  # suspects are alone, and at most half of the smallest group
            assert len(groups) == len(self.inside)
            assert len(groups) <= max(1, (min(groups) + 1) // 2)
        for _ in range(self.random.randrange(1, 6)):
            await asyncio.sleep(0)
        del self.inside[name]
        self.turns.leave()


@pytest.mark.parametrize("seed", range(40))
async def test_suspects_are_in_the_engine_alone_and_in_small_groups(seed: int) -> None:
    """Any jobs, any suspects, lines that are cancelled while they wait: everybody gets in."""
    chance = random.Random(seed)
    turns = EngineTurns()
    engine = Engine(turns, seed)

    async def job(name: str, delay: int) -> None:
        groups = [chance.choice([0, 0, 0, 1, 2, 3, 8, 60]) for _ in range(chance.randrange(30))]
        for _ in range(delay):
            await asyncio.sleep(0)
        turns.join(name)
        ordinary = [
            asyncio.create_task(engine.run(f"{name}{n}", 0))
            for n, group in enumerate(groups)
            if not group
        ]
        await asyncio.sleep(0)
        turns.ordinary_done(name)
        suspects = [
            asyncio.create_task(engine.run(f"{name}{n}", group))
            for n, group in enumerate(groups)
            if group
        ]
        gone = [asyncio.create_task(turns.enter(2)) for _ in range(chance.randrange(3))]
        await asyncio.sleep(0)
        for task in gone:
            if task.done():
                turns.leave()
            else:
                task.cancel()
        await asyncio.gather(*ordinary, *suspects)

    await asyncio.wait_for(
        asyncio.gather(*(job(letter, chance.randrange(40)) for letter in "abcd")), timeout=20
    )
    assert not engine.inside


async def test_everybody_elses_lines_go_first() -> None:
    turns = EngineTurns()
    engine = Engine(turns, 0)
    for job in ("old", "mine"):
        turns.join(job)
    suspects = [asyncio.create_task(engine.run(f"suspect{n}", 4)) for n in range(4)]
    turns.ordinary_done("mine")
    await asyncio.sleep(0)
    assert engine.order == []  # the other job has lines left
    for number in range(3):
        await engine.run(f"old{number}", 0)
    turns.join("new")  # came after the suspects: it waits until they are through
    late = asyncio.create_task(engine.run("new0", 0))
    turns.ordinary_done("old")
    await asyncio.gather(*suspects, late)
    assert engine.order[:3] == ["old0", "old1", "old2"]
    assert set(engine.order[3:]) == {"suspect0", "suspect1", "suspect2", "suspect3", "new0"}


async def test_a_line_that_is_cancelled_keeps_nobody_waiting() -> None:
    turns = EngineTurns()
    engine = Engine(turns, 0)
    await turns.enter(0)
    suspect = asyncio.create_task(turns.enter(2))
    ordinary = asyncio.create_task(engine.run("ordinary", 0))
    await asyncio.sleep(0)
    assert not suspect.done()
    assert not ordinary.done()
    suspect.cancel()
    await ordinary
    turns.leave()
    await asyncio.wait_for(turns.enter(1), 5)  # nobody is inside any more


def test_the_record_is_there_again(tmp_path: Path) -> None:
    record = EngineRecord(tmp_path / "record")
    for line in (1, 7, 70_000):
        record.enter(line)
    record.leave([7, 8])
    # As a process that is killed leaves it.
    again = EngineRecord(tmp_path / "record")
    assert again.inside() == [1, 70_000]
    assert again.died([1, 70_000], 2, End.ENGINE_DIED) == []
    for found in (again, EngineRecord(tmp_path / "record")):
        assert found.inside() == []
        assert found.suspects() == [1, 70_000]
        assert [found.group(line) for line in (1, 7, 70_000, 99_999)] == [2, 0, 2, 0]
    assert again.died([1], 1, End.ENGINE_DIED) == [1]
    assert EngineRecord(tmp_path / "record").condemned(1)
    assert not EngineRecord(tmp_path / "record").condemned(70_000)


def test_a_line_is_condemned_at_its_second_doubtful_end_alone(tmp_path: Path) -> None:
    record = EngineRecord(tmp_path / "record")
    for end in range(1, DOUBTFUL_ENDS + 1):
        record.enter(3)
        assert bool(record.died([3], 1, End.DOUBTFUL)) == (end == DOUBTFUL_ENDS)
        record = EngineRecord(tmp_path / "record")
    assert record.condemned(3)


@pytest.mark.parametrize("content", [b"", b"ENG", b"something else entirely", bytes(64)])
def test_a_file_that_is_no_record_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record").write_bytes(content)
    record = EngineRecord(tmp_path / "record")
    assert (record.inside(), record.suspects()) == ([], [])
    record.enter(2)
    assert EngineRecord(tmp_path / "record").inside() == [2]


def test_a_disk_that_is_full_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = EngineRecord(tmp_path / "record")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            record.enter(5)
    assert record.inside() == []
    record.enter(5)
    assert record.inside() == [5]
