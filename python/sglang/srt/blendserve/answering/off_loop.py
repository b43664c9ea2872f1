"""Work that a request brings along, done off the event loop and within a bound of time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

THREADS = 2
"""Threads that prepare requests: with one, a long prompt would hold up all others."""


class BoundedThreads:
    """Runs work in threads, a few at a time, and gives up what takes too long.

    A thread cannot be stopped. One that was given up goes on until it ends or the process does,
    which does not wait for it.
    """

    def __init__(self, seconds: float) -> None:
        """Give each piece of work ``seconds`` from its start."""
        self._seconds = seconds
        self._free = asyncio.Semaphore(THREADS)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, or raise what it raises.

        Raises:
            TimeoutError: it took too long.
        """
        async with self._free:
            loop = asyncio.get_running_loop()
            done: asyncio.Future[T] = loop.create_future()

            def settle(result: T | None, error: BaseException | None) -> None:
                if done.done():
                    return  # nobody waits for it any more
                if error is None:
                    done.set_result(result)  # type: ignore[arg-type]
                else:
                    done.set_exception(error)

            def target() -> None:
                result: T | None = None
                error: BaseException | None = None
                try:
                    result = work()
                except StopIteration as failure:  # a future takes all but this one
                    error = RuntimeError(repr(failure))
                except BaseException as failure:
                    error = failure
                with suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(settle, result, error)

            threading.Thread(target=target, name="prepare-request", daemon=True).start()
            async with asyncio.timeout(self._seconds):
                return await done
