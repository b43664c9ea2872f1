"""Fetches the images of batch lines from hosts that the operator allows."""

from __future__ import annotations

import asyncio
from urllib.parse import urljoin
from weakref import WeakKeyDictionary

import aiohttp

from sglang.srt.blendserve.allowed_hosts import AllowedHosts

SECONDS = 30.0
"""For all of one, with redirections."""

_TRIES = 3
_PAUSE_SECONDS = 1.0
_REDIRECTS = 5
_MOVED = frozenset((301, 302, 303, 307, 308))
_AT_ONCE = 32
"""Connections at a time, of one event loop."""


class NotFetched(Exception):
    """Something could not be fetched; the message says why."""


class _Again(Exception):
    """A fetch failed that may go well a moment later."""


async def fetch(url: str, hosts: AllowedHosts, most_bytes: int) -> bytes:
    """Return what an address gives, at most one byte more than ``most_bytes``.

    Each redirection is an address that must be allowed as well. What may be a moment's failure is
    tried three times.

    Raises:
        NotAllowed: it leads to a host or an address that must not be asked.
        NotFetched: it cannot be had.
    """
    async with _turn():
        for number in range(_TRIES):
            try:
                async with asyncio.timeout(SECONDS):
                    return await _fetched(url, hosts, most_bytes)
            except _Again as error:
                reason = str(error)
            except TimeoutError:
                reason = f"no answer within {SECONDS:.0f} seconds"
            if number + 1 < _TRIES:
                await asyncio.sleep(_PAUSE_SECONDS * 2**number)
        raise NotFetched(reason)


async def _fetched(url: str, hosts: AllowedHosts, most_bytes: int) -> bytes:
    connector = aiohttp.TCPConnector(socket_factory=hosts.socket_for)
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:
        for _ in range(_REDIRECTS + 1):
            hosts.check(url)
            headers = {"User-Agent": "sglang-blendserve", "Accept-Encoding": "identity"}
            try:
                async with session.get(url, headers=headers, allow_redirects=False) as answer:
                    if answer.status in _MOVED and "Location" in answer.headers:
                        url = urljoin(url, answer.headers["Location"])
                        continue
                    if answer.status >= 500 or answer.status == 429:
                        raise _Again(f"status {answer.status}")
                    if answer.status != 200:
                        raise NotFetched(f"status {answer.status}")
                    return await _body(answer, most_bytes)
            except (aiohttp.ClientError, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise
                raise _Again(str(error) or type(error).__name__) from error
    raise NotFetched(f"more than {_REDIRECTS} redirections")


async def _body(answer: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_chunked(1 << 16):
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            break
    return b"".join(parts)[: most_bytes + 1]


def _turn() -> asyncio.Semaphore:
    """Return the semaphore of the running event loop."""
    return _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_AT_ONCE))


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
