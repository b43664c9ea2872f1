"""One of several engines that are fed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sglang.srt.blendserve.answering.engine import Answer, Engine
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.engines.control import EngineControl, States
from sglang.srt.blendserve.engines.messages import EngineFacts
from sglang.srt.blendserve.pool.pool_request import Tokens


class Member(EngineControl, Protocol):
    """An engine of a pool. All of it runs on one event loop.

    Attributes:
        startup_seconds: how long its start took.
        answered: lines that it has answered.
    """

    startup_seconds: float
    answered: int

    @property
    def there(self) -> bool:
        """Whether it has started and is not gone."""
        ...

    @property
    def in_flight(self) -> int:
        """Lines in it."""
        ...

    async def execute(
        self, line: BatchLine, rid: str, prompts: Sequence[Tokens] | None = None
    ) -> Answer:
        """Return the answer to a line. Raises EngineLost where the engine is gone."""
        ...

    def abort(self, job: str) -> None:
        """Give up all requests of a job."""
        ...


class LocalMember:
    """The engine of this process: it is there as long as anybody is."""

    startup_seconds = 0.0
    there = True

    def __init__(self, engine: Engine, control: EngineControl) -> None:
        self.answered = self.in_flight = 0
        self._engine, self._control = engine, control

    async def execute(
        self, line: BatchLine, rid: str, prompts: Sequence[Tokens] | None = None
    ) -> Answer:
        """Return the answer to a line."""
        self.in_flight += 1
        try:
            answer = await self._engine.execute(line, rid, prompts)
        finally:
            self.in_flight -= 1
        self.answered += 1
        return answer

    def abort(self, job: str) -> None:
        """Give up all requests of a job."""
        self._engine.abort(job)

    async def facts(self) -> EngineFacts:
        """Return what is known of it."""
        return await self._control.facts()

    async def states(self) -> States:
        """Return what its schedulers say of themselves."""
        return await self._control.states()

    async def tell_beyond(self, work: RemainingWork) -> None:
        """Tell it how much predicted ``work`` waits elsewhere for it, seconds."""
        await self._control.tell_beyond(work)
