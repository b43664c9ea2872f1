"""Engines that follow a script, each at the far end of a link in this process, and runs over them.

Links and engines can be broken; everything between them and the results is the real thing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pools import COST
from scripted import Script, ScriptedEngine, at_once

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.messages import pack
from sglang.srt.blendserve.engines.engine_pool import EnginePool
from sglang.srt.blendserve.engines.host import EngineHost
from sglang.srt.blendserve.engines.link import LinkClosed
from sglang.srt.blendserve.engines.messages import EngineFacts
from sglang.srt.blendserve.run.run_log import Identity, RunLog
from sglang.srt.blendserve.run.run_loop import answering_loop
from sglang.srt.blendserve.run.source import BatchSource
from sglang.srt.blendserve.run.suspects import Suspects

FACTS = EngineFacts(kv_slots=4000, most_tokens=4096, cost=COST)


class _End:
    """One end of a pair of queues."""

    def __init__(self, to: asyncio.Queue[bytes | None], of: asyncio.Queue[bytes | None]) -> None:
        self.to, self.of = to, of

    def send(self, message: bytes) -> None:
        self.to.put_nowait(message)

    async def receive(self) -> bytes:
        message = await self.of.get()
        if message is None:
            raise LinkClosed("closed")
        return message


class LinkedEngine(_End):
    """A link with a scripted engine at its far end."""

    def __init__(self, script: Script, fault: str | None = None) -> None:
        """``fault``: "no start", or "mute" for one that answers no question."""
        there: asyncio.Queue[bytes | None] = asyncio.Queue()
        back: asyncio.Queue[bytes | None] = asyncio.Queue()
        super().__init__(there, back)
        self.engine = ScriptedEngine(script)
        self.told: list[RemainingWork] = []
        self.fault = fault
        self.closed = 0
        self._host = asyncio.create_task(self._serve(_End(back, there)))

    async def _serve(self, end: _End) -> None:
        if self.fault == "no start":
            end.send(pack({"op": "no engine", "message": "no memory is left"}))
            end.to.put_nowait(None)
            return
        end.send(pack({"op": "ready", "seconds": 0.1}))
        await EngineHost(self.engine, self, end).serve()

    def kill(self) -> None:
        """It is gone, with all that is in it."""
        self._host.cancel()
        self.of.put_nowait(None)

    async def close(self) -> None:
        self.closed += 1
        self.kill()

    async def facts(self) -> EngineFacts:
        return FACTS

    async def states(self) -> Sequence[Mapping[str, Any]]:
        if self.fault == "mute":
            await asyncio.Event().wait()
        return [{"blendserve": {"kv_slots": 4000, "first_started_at": None}}]

    async def tell_beyond(self, work: RemainingWork) -> None:
        self.told.append(work)


class Engines:
    """A pool of such engines, and what became of it.

    Attributes:
        made: the engines of each number, the newest last.
        said: what the pool told.
    """

    def __init__(
        self,
        count: int,
        script: Callable[[LinkedEngine], Script] = lambda engine: at_once,
        *,
        fault: Callable[[int, int], str | None] = lambda number, start: None,
        restarts: int = 3,
        window: int = 8,
        watchdog_seconds: float = 60.0,
    ) -> None:
        """``script``: of an engine that has been made. ``fault``: of that start of that number."""
        self.made: list[list[LinkedEngine]] = [[] for _ in range(count)]
        self.said: list[str] = []
        self._script, self._fault = script, fault
        self.pool = EnginePool(
            self._start, count, window,
            restarts=restarts, say=self.said.append, watchdog_seconds=watchdog_seconds,
        )  # fmt: skip

    async def _start(self, number: int) -> LinkedEngine:
        fault = self._fault(number, len(self.made[number]))
        if fault == "no process":
            raise OSError("there can be no more processes")
        engine = LinkedEngine(at_once, fault)
        engine.engine.script = self._script(engine)
        self.made[number].append(engine)
        return engine

    def executed(self) -> Counter[str]:
        """How often each line was sent to an engine."""
        return sum((one.engine.executed for all in self.made for one in all), Counter())


async def run_over(engines: Engines, folder: Path) -> RunLog:
    """Answer ``in.jsonl`` of a folder as `run` does, file order; return the log of results."""
    files = folder / "out.jsonl", folder / "errors.jsonl"
    with BatchSource(str(folder / "in.jsonl"), Rules()) as source, RunLog(*files) as log:
        found = source.scan(log.find)
        log.begin(Identity("job", source.digest, "model"))
        with Suspects(log.engine_record, log) as suspects, source.lines(log.__contains__) as lines:
            stop, many = Stop(), len(engines.made)
            loop = answering_loop(
                log, lines, found, engines.pool, stop, None, 8 * many, record=suspects.record
            )
            await engines.pool.begin()
            ending = asyncio.create_task(engines.pool.until_ended(stop))
            try:
                await loop.run()
            finally:
                ending.cancel()
                await engines.pool.close()
        return log
