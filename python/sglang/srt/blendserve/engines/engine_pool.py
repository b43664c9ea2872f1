"""Several engines as the one that `AnsweringLoop` needs: started, fed, watched, started again.

An engine that dies or hangs gives back the lines that were in it, and the others go on; one that
comes late, or again, gets lines from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from sglang.srt.blendserve.answering.engine import Answer
from sglang.srt.blendserve.answering.liveness import Liveness
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.engine_rooms import EngineRooms
from sglang.srt.blendserve.dispatch.planner import PlannerSettings
from sglang.srt.blendserve.engines.control import States
from sglang.srt.blendserve.engines.link import Link
from sglang.srt.blendserve.engines.member import Member
from sglang.srt.blendserve.engines.messages import EngineFacts
from sglang.srt.blendserve.engines.pool_facts import ask_facts, planner_settings_of
from sglang.srt.blendserve.engines.remote_engine import NotStarted, RemoteEngine
from sglang.srt.blendserve.engines.room_queue import RoomQueue
from sglang.srt.blendserve.pool.pool_request import Tokens

logger = logging.getLogger(__name__)

_TELL_SECONDS = 5.0

_WAIT_FOR_OTHERS = 0.5

_START_TRIES = 2
"""How often an engine may fail to start: two that start at once may take the same port."""


class EngineStanding(NamedTuple):
    """One engine at one moment.

    Attributes:
        there: whether it has started and lives.
        in_flight: lines in it.
        answered: lines that it has answered since its number was first started.
        starts: how often it has started.
    """

    there: bool
    in_flight: int
    answered: int
    starts: int


class EnginePool:
    """Some engines. All of it runs on one event loop.

    Attributes:
        rooms: what each may still get.
    """

    def __init__(
        self,
        start: Callable[[int], Awaitable[Link]],
        engines: int,
        window: int,
        *,
        restarts: int,
        say: Callable[[str], None],
        watchdog_seconds: float,
        first: Member | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            start: starts the engine of a number, from 0; raises OSError where that cannot be.
            window: most lines in one engine.
            restarts: how often in a row an engine that died is started again without an answer of
                its own in between.
            say: told of engines that come and go.
            watchdog_seconds: least time that an engine's answer to a question may take.
            first: an engine that is there already, number 0, which others look after.
        """
        self.rooms = EngineRooms(engines, window)
        for number in range(engines):
            self.rooms.lost(number)  # until it has started
        self.rooms.idle = self._idle
        self._start, self._restarts, self._say = start, restarts, say
        self._watchdog_seconds = watchdog_seconds
        self._engines: list[Member | None] = [None] * engines
        self._standing = [EngineStanding(False, 0, 0, 0)] * engines
        self._given = first is not None
        if first is not None:
            self._engines[0] = first
            self._standing[0] = EngineStanding(True, 0, 0, 1)
            self.rooms.joined(0)
        self._keeping: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()
        self._queue = RoomQueue(self.rooms, self._numbers_there)
        self._why_not: list[str] = []
        self._facts: EngineFacts | None = None
        self._closing = False

    async def begin(self) -> None:
        """Start all engines; return when the first of them has started, and the others as well or
        half as long again has passed: a short batch is not to be over before they come.

        Raises:
            NotStarted: none has.
        """
        self._keeping = [
            asyncio.create_task(self._keep(number))
            for number in range(int(self._given), len(self._engines))
        ]
        async with self._changed:
            await self._changed.wait_for(lambda: self._there() or self.ended)
        if not self._there():
            raise NotStarted("; ".join(dict.fromkeys(self._why_not)))
        if not self._given:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT_FOR_OTHERS * self.startup_seconds):
                    async with self._changed:
                        await self._changed.wait_for(self._all_settled)

    def _all_settled(self) -> bool:
        """Whether each engine has started, or will not."""
        return all(
            task.done() or (engine is not None and engine.there)
            for task, engine in zip(self._keeping, self._engines, strict=True)
        )

    async def close(self) -> None:
        """End all engines. Calling it twice does nothing."""
        self._closing = True
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)

    @property
    def ended(self) -> bool:
        """Whether no engine is there, and none will come."""
        keeping = self._keeping
        return not self._given and bool(keeping) and all(task.done() for task in keeping)

    @property
    def startup_seconds(self) -> float:
        """How long the slowest start took of the engines that are there."""
        return max((engine.startup_seconds for engine in self._there()), default=0.0)

    def standings(self) -> list[EngineStanding]:
        """Return how each engine is doing."""
        found = []
        for engine, before in zip(self._engines, self._standing, strict=True):
            if engine is None:
                found.append(before)
            else:
                answered = before.answered + engine.answered
                found.append(
                    EngineStanding(engine.there, engine.in_flight, answered, before.starts)
                )
        return found

    async def until_ended(self, stop: Stop) -> None:
        """Request a ``stop`` when there is no engine any more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.ended)
        stop.request("no engine")

    # --- as answering and planning see it ---------------------------------------------------

    async def execute(
        self,
        line: BatchLine,
        rid: str,
        prompts: Sequence[Tokens] | None = None,
        engine: int | None = None,
    ) -> Answer:
        """Return the answer to a line, of the ``engine`` that it is for or, where that one is not
        there, of the one that has most room; see `answering.engine.Engine`.

        Raises:
            EngineLost: the engine has died.
            Failed: the engine has no answer.
        """
        chosen = None if engine is None else self._engines[engine]
        if chosen is not None and chosen.there:
            return await chosen.execute(line, rid, prompts)
        place = await self._queue.take()
        chosen = self._engines[place.engine]
        assert chosen is not None
        try:
            return await chosen.execute(line, rid, prompts)
        finally:
            self.rooms.leave(place)

    def abort(self, job: str) -> None:
        """Give up all requests of a job."""
        for engine in self._there():
            engine.abort(job)

    async def states(self) -> States:
        """Return what the schedulers of all engines say of themselves."""
        answers = await asyncio.gather(
            *(engine.states() for engine in self._there()), return_exceptions=True
        )
        return [state for states in answers if isinstance(states, list) for state in states]

    async def facts(self) -> EngineFacts:
        """Return what is known of an engine that is there.

        Raises:
            ConfigError: none says it.
        """
        if self._facts is None:
            self._facts = await ask_facts(self._there())
        return self._facts

    async def planner_settings(self, stop: Stop, cost: CostModel | None) -> PlannerSettings:
        """Return what plans are made with; see `dispatch.fed_engine.FedEngine`."""
        asking, stopping = asyncio.create_task(self.facts()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise ValueError("the job stops")
            return planner_settings_of(asking.result(), cost, len(self._engines))
        finally:
            asking.cancel()
            stopping.cancel()

    async def tell_beyond(self, work: RemainingWork) -> None:
        """Tell each engine its share of the predicted ``work`` that waits for all, seconds."""
        there = self._there()
        share = RemainingWork(*(seconds / max(len(there), 1) for seconds in work))
        telling = [asyncio.create_task(engine.tell_beyond(share)) for engine in there]
        if telling:  # one that hangs does not keep the others from being told again
            await asyncio.wait(telling, timeout=_TELL_SECONDS)
        for task in telling:
            task.cancel()
        await asyncio.gather(*telling, return_exceptions=True)

    # --- the engines ------------------------------------------------------------------------

    def _idle(self) -> list[bool]:
        """Whether each engine has nothing to do; asked in any thread."""
        return [engine is not None and not engine.in_flight for engine in [*self._engines]]

    def _numbers_there(self) -> list[int]:
        return [number for number, engine in enumerate(self._engines) if engine and engine.there]

    def _there(self) -> list[Member]:
        return [engine for engine in self._engines if engine is not None and engine.there]

    async def _keep(self, number: int) -> None:
        """Start an engine, and start it again when it has died, as long as that leads on."""
        failures = fruitless = 0
        try:
            while not self._closing:
                life = await self._live(number)
                if life is None:
                    failures += 1
                    if failures >= _START_TRIES:
                        self._say(f"Engine {number} does not start; the others go on without it.")
                        return
                    continue
                failures = 0
                fruitless = 1 if life.answered else fruitless + 1
                died = f"Engine {number} died with {life.lost} lines in it"
                if fruitless > self._restarts:
                    self._say(f"{died}; it is not started again.")
                    return
                self._say(f"{died}; it is started again.")
        finally:
            # By the time that this runs, the task that it is called in is done.
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: loop.create_task(self._notify()))

    async def _live(self, number: int) -> RemoteEngine | None:
        """The life of one engine: return it at its end, None if it has not started."""
        try:
            link = await self._start(number)
        except Exception as error:  # of any kind: the others go on without it
            logger.exception("Engine %d has not started", number)
            self._why_not.append(str(error) or type(error).__name__)
            return None
        self._engines[number] = engine = RemoteEngine(link)
        reading = asyncio.create_task(engine.read())
        try:
            try:
                await engine.started()
            except NotStarted as error:
                self._why_not.append(str(error))
                logger.error("Engine %d has not started: %s", number, error)
                return None
            before = self._standing[number]
            self._standing[number] = before._replace(starts=before.starts + 1)
            self.rooms.joined(number)
            await self._notify()
            await self._until_gone(engine, link, reading)
            return engine
        finally:
            self.rooms.lost(number)
            self._engines[number] = None
            before = self._standing[number]
            self._standing[number] = before._replace(answered=before.answered + engine.answered)
            if not engine.startup_seconds:  # it would not end in order before it has started
                link.kill()
            await asyncio.shield(link.close())
            reading.cancel()
            await asyncio.wait({reading})

    async def _until_gone(
        self, engine: RemoteEngine, link: Link, reading: asyncio.Task[None]
    ) -> None:
        """Return when an engine is gone, or does not answer."""
        liveness = Liveness(engine.states, self._watchdog_seconds)
        watching = asyncio.create_task(liveness.wait_for_death(lambda: engine.in_flight > 0))
        try:
            await asyncio.wait({reading, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                link.kill()
                await asyncio.wait({reading})
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def _notify(self) -> None:
        """An engine has come or gone."""
        async with self._changed:
            self._changed.notify_all()
        await self._queue.look_again()
