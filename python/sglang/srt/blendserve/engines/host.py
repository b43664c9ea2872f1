"""An engine at the far end of its link: takes messages, and answers them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from sglang.srt.blendserve.answering.engine import Engine
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.messages import pack, unpack
from sglang.srt.blendserve.engines.control import EngineControl
from sglang.srt.blendserve.engines.link import LinkClosed
from sglang.srt.blendserve.engines.messages import pack_answer, unpack_line
from sglang.srt.blendserve.job_ids import sealed_again

logger = logging.getLogger(__name__)


class Messages(Protocol):
    """The engine's end of the link."""

    def send(self, message: bytes) -> None:
        """Send a message."""
        ...

    async def receive(self) -> bytes:
        """Return the next message. Raises LinkClosed where there will be none."""
        ...


class EngineHost:
    """Serves one engine to who is at the other end of the link."""

    def __init__(self, engine: Engine, control: EngineControl, messages: Messages) -> None:
        self._engine, self._control, self._messages = engine, control, messages
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Answer messages until nobody is at the other end."""
        try:
            while True:
                header, body = unpack(await self._messages.receive())
                self._take(header, body)
        except LinkClosed:
            pass
        finally:
            for task in self._tasks.values():
                task.cancel()

    def _take(self, header: dict[str, Any], body: bytes) -> None:
        if header["op"] == "abort":
            self._engine.abort(header["job"])
            return
        number = header["number"]
        if header["op"] == "cancel":
            if number in self._tasks:
                self._tasks[number].cancel()
            return
        work = self._answer if header["op"] == "line" else self._reply
        task = self._tasks[number] = asyncio.create_task(work(header, body))
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    async def _answer(self, header: dict[str, Any], body: bytes) -> None:
        """Have a line answered; whatever fails on the way is the result of this line alone."""
        number = header["number"]
        try:
            line, rid, prompts = unpack_line(header, body)
            # Who is at the other end has started this process.
            answer = await self._engine.execute(line, sealed_again(rid), prompts)
            message = pack_answer(number, answer)
        except Exception as error:  # of any kind, told to who asked
            logger.exception("line %s failed", header.get("line"))
            message = pack({"op": "failed", "number": number, "message": _said(error)})
        self._messages.send(message)

    async def _reply(self, header: dict[str, Any], body: bytes) -> None:
        reply: dict[str, Any] = {"op": "reply", "number": header["number"]}
        try:
            if header["op"] == "facts":
                reply["facts"] = (await self._control.facts()).as_json()
            elif header["op"] == "states":
                reply["states"] = [*await self._control.states()]
            elif header["op"] == "beyond":
                await self._control.tell_beyond(RemainingWork(*header["work"]))
            else:
                raise ValueError(f"there is no message {header['op']!r}")
        except Exception as error:  # of any kind, told to who asked
            logger.exception("a question to the engine failed")
            reply = {"op": "failed", "number": header["number"], "message": _said(error)}
        self._messages.send(pack(reply))


def _said(error: Exception) -> str:
    return ascii(str(error) or type(error).__name__)[1:-1]
