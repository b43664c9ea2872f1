"""A line that ends the engine is found, and nobody else's answer is lost.

The engine of these tests dies as soon as a marked line is in it; test/run and test/server do the
same with a real one.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
from both_ways import wait_for
from scripted import ScriptedEngine, Service, jsonl, line, serve

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.run.run_log import Identity, RunLog
from sglang.srt.blendserve.run.run_loop import answering_loop
from sglang.srt.blendserve.run.source import BatchSource
from sglang.srt.blendserve.run.suspects import Restarts, Suspects
from sglang.srt.blendserve.server import engine_death
from sglang.srt.blendserve.store.engine_record import End

pytestmark = pytest.mark.anyio

LINES = 60
MOST_DEATHS = math.ceil(math.log2(LINES)) + 2


class Dying:
    """A script that never answers once a marked line is in the engine: it has died."""

    def __init__(self, marked: set[str], together: int) -> None:
        self.marked = marked
        self.dead = asyncio.Event()
        self.full = asyncio.Event()
        self.inside: set[str] = set()
        self.together = together

    async def __call__(self, request: BatchLine) -> None:
        self.inside.add(request.custom_id)
        # All that are let in together are in when it dies, as in an engine with many slots.
        if len(self.inside) >= self.together:
            self.full.set()
        for _ in range(20):
            if self.full.is_set():
                break
            await asyncio.sleep(0.01)
        if self.inside & self.marked:
            self.dead.set()
        if self.dead.is_set():
            await asyncio.Event().wait()
        self.inside.discard(request.custom_id)


def names(job: str, count: int) -> list[str]:
    return [f"{job}-{n}" for n in range(count)]


@pytest.mark.parametrize("marked", [{"a-0"}, {"a-59"}, {"a-17", "a-18"}, {"a-5", "a-50", "a-30"}])
async def test_run_finds_the_lines(tmp_path: Path, marked: set[str]) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl([line(name) for name in names("a", LINES)]))
    files = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    deaths = 0
    with (
        BatchSource(str(tmp_path / "in.jsonl"), Rules()) as source,
        RunLog(*files) as log,
    ):
        found = source.scan(log.find)
        log.begin(Identity("job", source.digest, "model"))
        restarts = Restarts(3)
        with Suspects(log.engine_record, log) as suspects:
            while log.done < LINES:
                stop, script = Stop(), Dying(marked, LINES)
                with source.lines(log.__contains__) as lines:
                    loop = answering_loop(
                        log, lines, found, ScriptedEngine(script), stop, None, 1000,
                        record=suspects.record,
                    )  # fmt: skip
                    running = asyncio.create_task(loop.run())
                    await wait_for(
                        lambda script=script, task=running: script.dead.is_set() or task.done()
                    )
                    if script.dead.is_set():
                        deaths += 1
                        stop.request("engine died")
                    await running
                if script.dead.is_set():
                    assert restarts.lead_on(log.completed, suspects.engine_died())
    assert deaths <= MOST_DEATHS * len(marked)
    assert not log.engine_record.exists()
    output, errors = ([orjson.loads(x) for x in path.read_bytes().splitlines()] for path in files)
    assert sorted(one["custom_id"] for one in output) == sorted({*names("a", LINES)} - marked)
    check_errors(errors, marked)


def check_errors(errors: list[dict[str, Any]], marked: set[str]) -> None:
    assert sorted(one["custom_id"] for one in errors) == sorted(marked)
    for one in errors:
        assert one["response"] is None
        assert one["error"]["code"] == "engine_died"
        assert f"Line {one['error']['line']}" in one["error"]["message"]


async def all_completed(service: Service, batches: list[str]) -> bool:
    shown = [await service.client.batches.retrieve(batch) for batch in batches]
    return all(batch.status == "completed" for batch in shown)


async def test_the_server_finds_the_line_among_two_batches(tmp_path: Path) -> None:
    """Each start is one of a directory as the death of the process left it."""
    marked, half = {"b-11"}, LINES // 2
    batches: list[str] = []
    deaths = 0
    for start in range(MOST_DEATHS + 1):
        directory, script = tmp_path / f"start-{start}", Dying(marked, LINES)
        async with serve(directory, ScriptedEngine(script), max_in_flight=1000) as service:
            if not batches:
                jobs = [[line(name) for name in names(job, half)] for job in ("a", "b")]
                batches += [(await service.submit(lines)).id for lines in jobs]

            while not script.dead.is_set() and not await all_completed(service, batches):
                await asyncio.sleep(0.05)
            if script.dead.is_set():
                deaths += 1
                engine_death.note(directory, online=0)
                shutil.copytree(directory, tmp_path / f"start-{start + 1}")
                continue
            shown = [await service.client.batches.retrieve(batch) for batch in batches]
            results = [await service.result_lines(batch) for batch in shown]
            break
    assert deaths <= MOST_DEATHS
    assert [one["custom_id"] for one in results[0][0]] == names("a", half)
    assert results[0][1] == []
    assert sorted(one["custom_id"] for one in results[1][0]) == sorted({*names("b", half)} - marked)
    check_errors(results[1][1], marked)
    assert results[1][1][0]["error"]["line"] == 12
    counts = shown[1].request_counts
    assert (counts.total, counts.completed, counts.failed) == (half, half - 1, 1)


async def test_an_end_that_need_not_be_the_engines_condemns_nobody_at_once(tmp_path: Path) -> None:
    """A line that is alone when the server is killed from outside is run again."""
    script = Dying({"only"}, 1)
    async with serve(tmp_path / "one", ScriptedEngine(script)) as service:
        batch = await service.submit([line("only")])
        await script.dead.wait()
        shutil.copytree(tmp_path / "one", tmp_path / "two")  # no note of the engine's death
    async with serve(tmp_path / "two", ScriptedEngine()) as service:
        batch = await service.finish(batch.id)
        assert batch.request_counts.completed == 1


async def test_an_online_request_beside_the_line_makes_the_death_doubtful(tmp_path: Path) -> None:
    engine_death.note(tmp_path, online=1)
    assert engine_death._how_it_ended(tmp_path) is End.DOUBTFUL
    engine_death.note(tmp_path, online=0)
    assert engine_death._how_it_ended(tmp_path) is End.ENGINE_DIED
    assert engine_death._how_it_ended(tmp_path) is End.DOUBTFUL  # the note counts once


async def test_a_server_that_stops_in_order_leaves_no_suspects(tmp_path: Path) -> None:
    script = Dying({"stuck"}, 1)
    async with serve(tmp_path, ScriptedEngine(script)) as service:
        batch = await service.submit([line("stuck")])
        await script.dead.wait()
        record = service.store.workspace(batch.id)
    opened = record.open_engine_record()
    assert (opened.inside(), opened.suspects()) == ([], [])


@pytest.mark.parametrize(
    ("deaths", "most", "expected"),
    [
        ([(0, 0)] * 4, 3, [True, True, True, False]),
        ([(0, 0)], 0, [False]),
        ([(1, 60), (1, 30), (1, 15), (1, 8), (1, 4), (1, 2), (1, 1)], 1, [True] * 7),
        ([(0, 8), (0, 8), (0, 8)], 2, [True, True, False]),
        ([(0, 2), (0, 1), (0, 1), (0, 1)], 2, [True, True, True, False]),
    ],
)
def test_another_engine_is_started_while_that_leads_on(
    deaths: list[tuple[int, int]], most: int, expected: list[bool]
) -> None:
    restarts = Restarts(most)
    assert [restarts.lead_on(done, group) for done, group in deaths] == expected
