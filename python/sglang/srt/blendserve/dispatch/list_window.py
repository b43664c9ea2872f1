"""A list of requests that is planned as a whole, while an engine holds a window of it.

The items are prepared from places spread over the list, so that what the first plan is made of is
a sample of all; until there is one, a few go in unplanned. Where no plan can be made, all go in as
they come, as if there were no window: the engine plans over what it holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from itertools import islice
from typing import Any, Protocol

import numpy as np

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.list_columns import ListColumns, Prepared
from sglang.srt.blendserve.dispatch.messages import News, Taken
from sglang.srt.blendserve.dispatch.planner import Planner, PlannerSettings
from sglang.srt.blendserve.requests.line_blocks import spread

logger = logging.getLogger(__name__)

FIRST_ITEMS = 256
"""Items that are in the engine at once before there is a plan."""

_BLOCK = 32
"""Neighbours that are prepared at once, while the event loop stands still: some 20 ms."""
_ITEMS = 64
_BUSY_SECONDS = 0.05


class Items(Protocol):
    """The items of a list, and an engine that answers them."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    @property
    def choices(self) -> int:
        """Answers to each of them."""
        ...

    async def prepare(self, items: Sequence[int]) -> list[Prepared]:
        """Return what is known of some of them; raises what an item that is wrong raises."""
        ...

    def answer(self, item: int, prepared: Prepared | None) -> AsyncGenerator[Any, None]:
        """Send one to the engine, and yield what comes of it.

        ``prepared``: what `prepare` said of it; None: it was aborted, and is not to be computed.
        """
        ...

    def output_tokens(self, output: Any) -> int | None:
        """Return the tokens of the answers that end with an output of `answer`, None where there
        is nothing to learn from them."""
        ...


class ListWindow:
    """Answers the items of one list. Belongs to one event loop."""

    def __init__(
        self,
        items: Items,
        job: str,
        window: int,
        settings: Callable[[], Awaitable[PlannerSettings]],
    ) -> None:
        """Start nothing yet.

        Args:
            job: the list's name.
            window: answers that the engine works on, or has waiting, at once.
            settings: what plans are made with; raises if there can be no plan.
        """
        self._closed = asyncio.Event()
        self._items, self._job, self._window, self._settings = items, job, window, settings
        self._columns = ListColumns(items.count, items.choices)
        self._planner: Planner | None = None
        self._no_plan = False
        self._taken: Taken | None = None
        self._sent = bytearray(items.count)
        self._prepared: dict[int, Prepared] = {}  # those that are not sent, as they came
        self._running: set[asyncio.Task[None]] = set()
        self._answers_running = self._answered = 0
        self._started: list[int] = []
        self._ended: list[tuple[int, int | None]] = []
        self._outputs: asyncio.Queue[tuple[int, Any] | None] = asyncio.Queue()
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def left(self) -> RemainingWork:
        """Predicted work of what is planned and was not handed over, seconds."""
        if self._taken is None or self._closed.is_set():
            return RemainingWork(0.0, 0.0)
        work = self._taken.work
        return RemainingWork(max(work.compute, 0.0), max(work.memory, 0.0))

    async def answers(self) -> AsyncGenerator[tuple[int, Any], None]:
        """Yield the number of an item and an output of it, as they come.

        Raises what an item raises; the others are given up then.
        """
        self._loop = asyncio.get_running_loop()
        feeding = asyncio.create_task(self._feed())
        try:
            while (found := await self._outputs.get()) is not None:
                yield found
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def closed_within(self, seconds: float) -> bool:
        """Wait at most ``seconds``; return whether nothing is wanted any more."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return False
        return True

    def abort(self, chosen: Callable[[int], bool]) -> None:
        """Compute none of the items whose number is ``chosen`` and that are not sent.

        May be called from any thread while `answers` runs.
        """
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._abort, chosen)

    def _abort(self, chosen: Callable[[int], bool]) -> None:
        if self._closed.is_set():
            return
        for item in range(self._items.count):
            if not self._sent[item] and chosen(item):
                self._started.append(item + 1)
                self._send(item, None)

    # --- preparing and planning -------------------------------------------------------------

    async def _feed(self) -> None:
        beside = [asyncio.create_task(self._prepare()), asyncio.create_task(self._open())]
        try:
            while self._answered < self._items.count:
                self._news.clear()
                self._raise_what_failed(beside[0])
                more = self._planner is not None and self._planner.work(0.0)
                self._fill()
                # Python 3.11's `wait_for` forgets a cancellation that comes with the news.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_BUSY_SECONDS if more else None):
                        await self._news.wait()
        finally:
            self._closed.set()
            beside += self._running
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            self._forget()
            self._outputs.put_nowait(None)

    def _forget(self) -> None:
        """Let go of the requests, which know each other."""
        self._columns.close()
        if self._planner is not None:
            try:
                self._planner.close(self._job)
            except Exception:  # of any kind: the list has its answers
                logger.exception("The plan of %s cannot be closed", self._job)

    def _raise_what_failed(self, preparing: asyncio.Task[None]) -> None:
        for task in (preparing, *[task for task in self._running if task.done()]):
            if task.done():
                task.result()
                self._running.discard(task)

    async def _prepare(self) -> None:
        count = self._items.count
        try:
            for block in spread(-(-count // _BLOCK)):
                items = range(block * _BLOCK, min((block + 1) * _BLOCK, count))
                for item, prepared in zip(items, await self._items.prepare(items), strict=True):
                    self._columns.add(item, prepared)
                    if not self._sent[item]:
                        self._prepared[item] = prepared
                self._news.set()
                await asyncio.sleep(0)
        finally:
            self._news.set()

    async def _open(self) -> None:
        try:
            planner = Planner(await self._settings())
            planner.open(self._job, self._columns, np.zeros(0, dtype=np.bool_))
            self._planner = planner
        except Exception as error:  # of any kind: the list is answered without a plan
            self._give_up_planning(f"{type(error).__name__}: {error}")
        self._news.set()

    def _give_up_planning(self, reason: str) -> None:
        logger.warning("The list goes to the engine as it is, of which it plans: %s", reason)
        self._planner, self._taken, self._no_plan = None, None, True

    # --- handing over -----------------------------------------------------------------------

    def _fill(self) -> None:
        """Send as many items as the window takes."""
        while free := self._free():
            items = self._next(min(free, _ITEMS))
            if not items:
                return
            for item in items:
                if not self._sent[item]:
                    self._send(item, self._prepared[item])

    def _free(self) -> int:
        """Items that may be sent now."""
        if self._no_plan:
            return len(self._prepared)
        free = (self._window - self._answers_running) // self._items.choices
        return max(free, 0 if self._running else 1)

    def _next(self, most: int) -> list[int]:
        if self._planner is not None:
            whole = self._columns.ready == self._items.count
            news = News(self._started, self._ended, whole)
            self._started, self._ended = [], []
            try:
                self._taken = self._planner.take(self._job, most, news)
            except Exception:  # of any kind: no answer depends on the plan
                logger.exception("%s cannot be planned", self._job)
                self._give_up_planning("planning has failed")
            else:
                if self._taken.places:
                    return [place.line - 1 for place in self._taken.places]
                if self._taken.planned and not self._taken.ended:
                    return []
        if not self._no_plan and (self._taken is None or not self._taken.ended):
            most = min(most, FIRST_ITEMS - self._answers_running // self._items.choices)
        found = [*islice(self._prepared, max(most, 0))]
        self._started += [item + 1 for item in found]
        return found

    def _send(self, item: int, prepared: Prepared | None) -> None:
        self._sent[item] = True
        self._prepared.pop(item, None)
        self._answers_running += self._items.choices
        self._running.add(asyncio.create_task(self._answer(item, prepared)))

    async def _answer(self, item: int, prepared: Prepared | None) -> None:
        tokens: int | None = None if prepared is None else 0
        try:
            async with aclosing(self._items.answer(item, prepared)) as outputs:
                async for output in outputs:
                    ended = self._items.output_tokens(output)
                    tokens = None if tokens is None or ended is None else tokens + ended
                    self._outputs.put_nowait((item, output))
            self._answered += 1
        finally:
            self._answers_running -= self._items.choices
            self._ended.append((item + 1, tokens))
            self._news.set()
