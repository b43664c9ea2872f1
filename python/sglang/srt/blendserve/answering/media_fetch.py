"""Fetches the images of batch lines from hosts that the operator allows.

Many lines may name one address, and many addresses one host: an address is fetched once for all who
ask for it about then, and a host that does not answer is left alone for a while, so that it holds
up nobody who asks another.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit
from weakref import WeakKeyDictionary

import aiohttp
from yarl import URL

from sglang.srt.blendserve.allowed_hosts import AllowedHosts

SECONDS = 30.0
"""For all of one, with redirections."""

LONGEST_URL = 8192
"""Characters: signed addresses have some thousand."""

KEPT_BYTES = 1 << 26
"""Of what was fetched last, kept for others who ask for the same."""

_TRIES = 3
_PAUSE_SECONDS = 1.0
_REDIRECTS = 5
_MOVED = frozenset((301, 302, 303, 307, 308))
_AT_ONCE = 16
"""Connections at a time to one host."""

_GIVEN_UP_AFTER = 4
"""So many addresses of a host in a row without an answer, and it is left alone."""

_LEFT_ALONE_SECONDS = 60.0
"""For such a host, and for an address that has failed."""

_MOST_FAILED = 10_000


class NotFetched(Exception):
    """Something could not be fetched; the message says why."""


class _Again(Exception):
    """A fetch failed that may go well a moment later.

    Attributes:
        answers: whether the host has answered, if only with an error.
    """

    def __init__(self, reason: str, *, answers: bool = False) -> None:
        super().__init__(reason)
        self.answers = answers


async def fetch(url: str, hosts: AllowedHosts, most_bytes: int) -> bytes:
    """Return what an address gives, at most one byte more than ``most_bytes``.

    Each redirection is an address that must be allowed as well. What may be a moment's failure is
    tried three times. For the running event loop's own use.

    Raises:
        NotAllowed: it leads to a host or an address that must not be asked.
        NotFetched: it cannot be had.
    """
    fetcher = _fetchers.setdefault(asyncio.get_running_loop(), _Fetcher())
    return await fetcher.fetch(url.partition("#")[0], hosts, most_bytes)


@dataclass(slots=True)
class _Host:
    """What is known of a host.

    Attributes:
        turns: for connections to it.
        failures: addresses in a row without an answer.
        left_alone_until: on the clock of `time.monotonic`.
    """

    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    failures: int = 0
    left_alone_until: float = 0.0


class _Fetcher:
    """All fetches of an event loop."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._asked: dict[str, asyncio.Lock] = {}
        self._failed: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def fetch(self, url: str, hosts: AllowedHosts, most_bytes: int) -> bytes:
        hosts.check(url, longest=LONGEST_URL)
        lock = self._asked.setdefault(url, asyncio.Lock())
        try:
            async with lock:  # who asks for the same finds it kept then
                if url in self._kept:
                    self._kept.move_to_end(url)
                    return self._kept[url]
                until, reason = self._failed.get(url, (0.0, ""))
                if time.monotonic() < until:
                    raise NotFetched(reason)
                try:
                    data = await self._asked_for(url, hosts, most_bytes)
                except NotFetched as error:
                    self._failed[url] = time.monotonic() + _LEFT_ALONE_SECONDS, str(error)
                    while len(self._failed) > _MOST_FAILED:
                        self._failed.popitem(last=False)
                    raise
                self._keep(url, data)
                return data
        finally:
            if not lock.locked():
                self._asked.pop(url, None)

    async def _asked_for(self, url: str, hosts: AllowedHosts, most_bytes: int) -> bytes:
        host = self._hosts.setdefault(urlsplit(url).netloc, _Host())
        reason, answers = "", False
        for number in range(_TRIES):
            async with host.turns:
                if time.monotonic() < host.left_alone_until:
                    raise NotFetched("its host did not answer a moment ago")
                try:
                    async with asyncio.timeout(SECONDS):
                        data = await _fetched(url, hosts, most_bytes)
                    host.failures = 0
                    return data
                except _Again as error:
                    reason, answers = str(error), error.answers
                except TimeoutError:
                    answers = False
                    reason = f"no answer within {SECONDS:.0f} seconds"
            if number + 1 < _TRIES:
                await asyncio.sleep(_PAUSE_SECONDS * 2**number)
        host.failures = 0 if answers else host.failures + 1
        if host.failures >= _GIVEN_UP_AFTER:
            host.failures = 0
            host.left_alone_until = time.monotonic() + _LEFT_ALONE_SECONDS
        raise NotFetched(reason)

    def _keep(self, url: str, data: bytes) -> None:
        if len(data) > KEPT_BYTES // 4:
            return
        self._kept[url] = data
        self._size += len(data)
        while self._size > KEPT_BYTES:
            self._size -= len(self._kept.popitem(last=False)[1])


_fetchers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Fetcher] = WeakKeyDictionary()


async def _fetched(url: str, hosts: AllowedHosts, most_bytes: int) -> bytes:
    connector = aiohttp.TCPConnector(socket_factory=hosts.socket_for)
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:
        for _ in range(_REDIRECTS + 1):
            hosts.check(url, longest=LONGEST_URL)
            headers = {"User-Agent": "sglang-blendserve", "Accept-Encoding": "identity"}
            try:
                # As it stands: a signature is of the very letters.
                asked = session.get(URL(url, encoded=True), headers=headers, allow_redirects=False)
                async with asked as answer:
                    if answer.status in _MOVED and "Location" in answer.headers:
                        url = urljoin(url, answer.headers["Location"]).partition("#")[0]
                        continue
                    if answer.status >= 500 or answer.status == 429:
                        raise _Again(f"status {answer.status}", answers=True)
                    if answer.status != 200:
                        raise NotFetched(f"status {answer.status}")
                    return await _body(answer, most_bytes)
            except ValueError as error:
                raise NotFetched("it leads to something that is no address") from error
            except (aiohttp.ClientError, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise
                raise _failure(error) from error
    raise NotFetched(f"more than {_REDIRECTS} redirections")


def _failure(error: Exception) -> Exception:
    """Return what a failed connection means."""
    cause = getattr(error, "os_error", error)
    if getattr(cause, "errno", None) == errno.EACCES:  # of `AllowedHosts.socket_for`
        return NotFetched("its host has no public address")
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError):
        return NotFetched("its host's certificate is not accepted")
    return _Again(str(error) or type(error).__name__)


async def _body(answer: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_chunked(1 << 16):
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            break
    return b"".join(parts)[: most_bytes + 1]
