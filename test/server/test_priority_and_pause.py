"""A batch's priority, and pausing it: what they change, and that they outlive a restart.

pytest test/server/test_priority_and_pause.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from openai.types import Batch
from scripted import Held, ScriptedEngine, Service, line, serve

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.planned_lines import Standing
from sglang.srt.blendserve.server.plan_view import PlanView

pytestmark = pytest.mark.anyio


def lines(name: str, count: int) -> list[dict[str, Any]]:
    return [line(f"{name}{number}") for number in range(count)]


async def change(service: Service, batch: Batch, **what: Any) -> Batch:
    return await service.client.post(f"/batches/{batch.id}", cast_to=Batch, body=what)


async def until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def of(name: str, came: Sequence[str]) -> int:
    return sum(one.startswith(name) for one in came)


async def test_the_higher_priority_goes_first(directory: Path) -> None:
    script = Held()
    async with serve(directory, ScriptedEngine(script), max_in_flight=4) as service:
        await service.submit(lines("low", 20))
        await until(lambda: len(script.came) == 4)
        high = await service.submit(lines("high", 20), extra_body={"priority": 3})
        assert high.model_extra is not None
        assert high.model_extra["priority"] == 3
        await asyncio.sleep(0.1)
        for _ in range(5):
            script.let_end(4)  # all that are in it end together
            await asyncio.sleep(0.05)
        # A line was on its way in when the other batch came.
        assert of("high", script.came[5:20]) == 15
        script.let_end(100)


async def test_a_priority_may_be_changed(directory: Path) -> None:
    script = Held()
    async with serve(directory, ScriptedEngine(script), max_in_flight=4) as service:
        await service.submit(lines("one", 30))
        other = await service.submit(lines("other", 30))
        await until(lambda: len(script.came) == 4)
        changed = await change(service, other, priority=100)
        assert changed.model_extra is not None
        assert changed.model_extra["priority"] == 100
        for _ in range(12):
            script.let_end(1)
            await asyncio.sleep(0.02)
        assert of("other", script.came[6:16]) == 10
        script.let_end(100)


async def test_a_paused_batch_ends_what_it_has_begun_and_goes_on_when_told(
    directory: Path,
) -> None:
    script = Held()
    async with serve(directory, ScriptedEngine(script), max_in_flight=4) as service:
        batch = await service.submit(lines("a", 12))
        await until(lambda: len(script.came) == 4)
        paused = await change(service, batch, paused=True)
        assert paused.status == "in_progress"
        assert paused.model_extra is not None
        assert paused.model_extra["paused_at"]
        script.let_end(100)
        await asyncio.sleep(0.3)
        # What was on its way in goes in, too.
        assert 4 <= len(script.came) <= 5
        other = await service.finish((await service.submit(lines("b", 12))).id)
        assert other.status == "completed"
        assert "paused since" in (await service.http.get("/batches")).text
        again = await change(service, batch, paused=False)
        assert again.model_extra is not None
        assert again.model_extra["paused_at"] is None
        done = await service.finish(batch.id)
        assert done.request_counts is not None
        assert done.request_counts.completed == 12
        assert sorted(name for name in script.came if name[0] == "a") == sorted(
            f"a{number}" for number in range(12)
        )


async def test_pause_and_priority_outlive_a_restart(directory: Path) -> None:
    script = Held()
    script.let_end(100)
    async with serve(directory, ScriptedEngine(), max_in_flight=4) as service:
        service.engine.ready = False  # type: ignore[misc]
        batch = await service.submit(lines("a", 3), extra_body={"priority": -7})
        await change(service, batch, paused=True)
    async with serve(directory, ScriptedEngine(script), max_in_flight=4) as service:
        await asyncio.sleep(0.3)
        assert script.came == []
        found = await service.client.batches.retrieve(batch.id)
        assert found.model_extra is not None
        assert found.model_extra["priority"] == -7
        await change(service, batch, paused=False)
        assert (await service.finish(batch.id)).status == "completed"


async def test_a_paused_batch_can_be_cancelled(directory: Path) -> None:
    async with serve(directory, ScriptedEngine(Held()), max_in_flight=2) as service:
        batch = await service.submit(lines("a", 10))
        await change(service, batch, paused=True)
        await service.client.batches.cancel(batch.id)
        assert (await service.finish(batch.id)).status == "cancelled"


async def test_suspects_of_others_do_not_wait_for_a_paused_batch(directory: Path) -> None:
    """After an engine's death lines that were in it go when the others are done: a paused batch is
    no reason to wait."""
    script = Held()
    async with serve(directory, ScriptedEngine(script), max_in_flight=4) as service:
        batch = await service.submit(lines("a", 12))
        await until(lambda: len(script.came) == 4)
        await change(service, batch, paused=True)
        script.let_end(100)
        await asyncio.sleep(0.3)
        turns = service.runner._context.turns
        turns.join("another")
        suspect = asyncio.ensure_future(turns.enter(group=2))
        turns.ordinary_done("another")
        await asyncio.wait_for(suspect, 5)
        turns.leave()
        await change(service, batch, paused=False)
        assert (await service.finish(batch.id)).status == "completed"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "give priority"),
        ({"priority": "high"}, "priority"),
        ({"priority": 101}, "priority"),
        ({"paused": 1}, "paused"),
        ({"status": "completed"}, "status"),
    ],
)
async def test_wrong_changes(directory: Path, body: dict[str, Any], says: str) -> None:
    async with serve(directory, ScriptedEngine(Held())) as service:
        batch = await service.submit(lines("a", 2))
        with pytest.raises(openai.BadRequestError, match=says):
            await change(service, batch, **body)


async def test_what_cannot_be_changed(directory: Path) -> None:
    async with serve(directory) as service:
        batch = await service.finish((await service.submit(lines("a", 2))).id)
        with pytest.raises(openai.ConflictError, match="status 'completed'"):
            await change(service, batch, paused=True)
        unknown = batch.model_copy(update={"id": "batch_" + 32 * "0"})
        with pytest.raises(openai.NotFoundError):
            await change(service, unknown, paused=True)


class Planning:
    """Stands for the plan over all open batches, which needs a real engine."""

    planner_starts = 1

    def __init__(self) -> None:
        self.shown: PlanView | None = PlanView(
            waiting=9000,
            running=800,
            density=(12.0, 0.1),
            root_density=1.5,
            sharing=0.2,
            optimum_seconds=5.0,
        )

    def standings(self) -> dict[str, Standing]:
        return {"job": Standing(9900, 9800, 0.1, RemainingWork(120.0, 80.0))}

    async def view(self) -> PlanView | None:
        return self.shown

    async def end(self, job: str) -> None: ...

    async def close(self) -> None: ...


async def test_the_page_shows_the_plan_over_all_open_batches(directory: Path) -> None:
    engine = ScriptedEngine()
    engine.planning = planning = Planning()  # type: ignore[assignment]
    async with serve(directory, engine) as service:
        page = (await service.http.get("/batches")).text
        assert "Plan over all open batches" in page
        assert "9000 waiting, 800 in the engine" in page
        assert "9900 / 9800" in page
        assert "120 s of compute, 80 s of memory traffic" in page
        planning.shown = None
        assert "over all open batches" not in (await service.http.get("/batches")).text


async def test_the_page_shows_how_long_a_batch_will_take(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(directory, ScriptedEngine(Held())) as service:
        batch = await service.submit(lines("a", 4))
        await until(lambda: batch.id in service.runner._runs)
        run = service.runner._runs[batch.id]
        known = SimpleNamespace(seconds=3700.0, note=lambda *_: None)
        monkeypatch.setattr(run, "_time_left", known)
        await asyncio.sleep(0.1)
        assert "about 1:01:40 left" in (await service.http.get("/batches")).text


async def test_priorities_and_suspects_do_not_wait_for_each_other(directory: Path) -> None:
    """A line of a low priority that has its turn and no slot, a batch of a high one that waits for
    its turn, and a suspect that waits until nobody is in the engine."""
    script = Held()
    async with serve(directory, ScriptedEngine(script), max_in_flight=2) as service:
        turns = service.runner._context.turns
        turns.join("another")
        suspect = asyncio.ensure_future(turns.enter(group=2))
        await asyncio.sleep(0)
        low = await service.submit(lines("low", 8))
        await until(lambda: len(script.came) == 2)
        high = await service.submit(lines("high", 8), extra_body={"priority": 9})
        await asyncio.sleep(0.2)
        turns.ordinary_done("another")  # now it is the suspect's turn next
        script.let_end(100)
        await asyncio.wait_for(suspect, 10)
        turns.leave()
        for batch in (low, high):
            assert (await service.finish(batch.id)).status == "completed"
