"""One engine elsewhere, as those see it who feed it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from sglang.srt.blendserve.answering.engine import Answer, EngineLost
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.messages import pack, unpack
from sglang.srt.blendserve.engines.control import States
from sglang.srt.blendserve.engines.link import Link, LinkClosed
from sglang.srt.blendserve.engines.messages import EngineFacts, pack_line, unpack_answer
from sglang.srt.blendserve.pool.pool_request import Tokens

logger = logging.getLogger(__name__)


class NotStarted(RuntimeError):
    """An engine has not started; the message says why."""


class Failed(RuntimeError):
    """What was asked of an engine has failed there; the message says why."""


class RemoteEngine:
    """The engine at the other end of a link. All of it runs on one event loop.

    Attributes:
        startup_seconds: how long its start took, once it has.
        answered: lines that it has answered.
        lost: lines that were in it when it went.
    """

    def __init__(self, link: Link) -> None:
        """`read` has to run beside all else."""
        self.startup_seconds = 0.0
        self.answered = self.lost = 0
        self._link = link
        self._numbers = itertools.count()
        self._lines: dict[int, asyncio.Future[Answer]] = {}
        self._questions: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gone = False

    @property
    def there(self) -> bool:
        """Whether it has started and is not gone."""
        return not self._gone and self._started.done() and self._started.exception() is None

    @property
    def in_flight(self) -> int:
        """Lines in it."""
        return len(self._lines)

    async def read(self) -> None:
        """Take in what it says until it is gone; who waits for an answer of it is told so then."""
        try:
            while True:
                self._take(*unpack(await self._link.receive()))
        except LinkClosed:
            pass
        except Exception:  # of any kind: what it says cannot be read, so it is as good as gone
            logger.exception("An engine says what nobody understands; it counts as dead")
        finally:
            self._gone = True
            if not self._started.done():
                self._started.set_exception(NotStarted("its process ended while it started"))
            self.lost = sum(not line.done() for line in self._lines.values())
            lost = EngineLost(self.lost)
            waiting: list[asyncio.Future[Any]] = [
                *self._lines.values(),
                *self._questions.values(),
            ]
            for future in waiting:
                if not future.done():
                    future.set_exception(lost)
            for future in (self._started, *waiting):
                if not future.cancelled():
                    future.exception()  # whoever waited for it may be gone as well

    async def started(self) -> None:
        """Return when it has started. Raises NotStarted if it has not."""
        await asyncio.shield(self._started)

    async def execute(
        self, line: BatchLine, rid: str, prompts: Sequence[Tokens] | None = None
    ) -> Answer:
        """Return the answer to a line.

        Raises:
            EngineLost: it is gone, or goes before there is one.
            Failed: there is none.
        """
        if self._gone:
            raise EngineLost(0)
        number = next(self._numbers)
        waiting = self._lines[number] = asyncio.get_running_loop().create_future()
        self._link.send(pack_line(number, line, rid, prompts))
        try:
            answer = await waiting
        except asyncio.CancelledError:
            self._link.send(pack({"op": "cancel", "number": number}))
            raise
        finally:
            self._lines.pop(number, None)
        self.answered += 1
        return answer

    def abort(self, job: str) -> None:
        """Give up all requests of a job."""
        self._link.send(pack({"op": "abort", "job": job}))

    async def facts(self) -> EngineFacts:
        """Return what is known of it. Raises EngineLost or Failed."""
        return EngineFacts.from_json((await self._ask("facts"))["facts"])

    async def states(self) -> States:
        """Return what its schedulers say of themselves. Raises EngineLost or Failed."""
        states: States = (await self._ask("states"))["states"]
        return states

    async def tell_beyond(self, work: RemainingWork) -> None:
        """Tell it how much predicted ``work`` waits elsewhere for it, seconds. Raises EngineLost or
        Failed."""
        await self._ask("beyond", work=[*work])

    async def _ask(self, question: str, **more: Any) -> dict[str, Any]:
        if self._gone:
            raise EngineLost(0)
        number = next(self._numbers)
        waiting = self._questions[number] = asyncio.get_running_loop().create_future()
        self._link.send(pack({"op": question, "number": number, **more}))
        try:
            return await waiting
        finally:
            self._questions.pop(number, None)

    def _take(self, header: dict[str, Any], body: bytes) -> None:
        kind, number = header["op"], header.get("number")
        if kind == "ready":
            self.startup_seconds = header["seconds"]
            self._started.set_result(None)
        elif kind == "no engine":
            if not self._started.done():
                self._started.set_exception(NotStarted(header["message"]))
        elif number in self._lines and not self._lines[number].done():
            if kind == "answer":
                self._lines[number].set_result(unpack_answer(header, body))
            else:
                self._lines[number].set_exception(Failed(header["message"]))
        elif number in self._questions and not self._questions[number].done():
            if kind == "reply":
                self._questions[number].set_result(header)
            else:
                self._questions[number].set_exception(Failed(header["message"]))
