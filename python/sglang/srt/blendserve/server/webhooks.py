"""Calls that tell of the end of batches, signed as the Standard Webhooks specification has it.

Events have OpenAI's form (``batch.completed`` and so on), so ``client.webhooks.unwrap`` of OpenAI's
client checks and reads them. A call is stored with the end of its batch, and tried until it is
answered with a success or three days have passed: at least once, with the same ``webhook-id``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import aiohttp
import aiosqlite
from standardwebhooks import Webhook as Signer

from sglang.srt.blendserve.allowed_hosts import AllowedHosts, NotAllowed
from sglang.srt.blendserve.answering.disk_retry import is_storage_failure
from sglang.srt.blendserve.store import webhook_table
from sglang.srt.blendserve.store.directory import Store, now
from sglang.srt.blendserve.store.disk import open_private
from sglang.srt.blendserve.store.webhook_table import Webhook

logger = logging.getLogger(__name__)

PAUSES = (5, 30, 120, 600, 1800, 3600, *[10_800] * 22)
"""Seconds between tries, three days in all."""

_TICK_SECONDS, _NOTE_SECONDS, _CALL_SECONDS, _AT_ONCE = 1.0, 5.0, 15.0, 64
_GONE, _LEAST_KEY_BYTES = 410, 24
_ERROR_CHARACTERS = 300


class WebhookSender:
    """Makes the calls that are due. Use as an asynchronous context manager, while the store is
    open."""

    def __init__(self, store: Store, rules: AllowedHosts, secret: str) -> None:
        """``secret``: that calls are signed with, ``whsec_`` and Base64."""
        self._store, self._rules, self._signer = store, rules, Signer(secret)
        self._task: asyncio.Task[None] | None = None
        self._calls: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> WebhookSender:
        self._task = asyncio.create_task(self._send_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _send_forever(self) -> None:
        connector = aiohttp.TCPConnector(socket_factory=self._rules.socket_for, limit=_AT_ONCE)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            try:
                while True:
                    await self._begin_calls(session)
                    await asyncio.sleep(_TICK_SECONDS)
            finally:
                for call in self._calls.values():
                    call.cancel()
                if self._calls:
                    await asyncio.wait(self._calls.values())

    async def _begin_calls(self, session: aiohttp.ClientSession) -> None:
        """Begin the calls that are due and not begun; each is a task of its own."""
        try:
            most = _AT_ONCE + len(self._calls)
            due = await self._store.db.read(lambda db: webhook_table.due(db, now(), most))
        except Exception as error:  # of any kind: calls go on as long as the server does
            if not is_storage_failure(error):
                logger.exception("Webhooks stumbled")
            return
        for webhook in due:
            if webhook.id not in self._calls and len(self._calls) < _AT_ONCE:
                task = asyncio.create_task(self._send(session, webhook))
                self._calls[webhook.id] = task
                task.add_done_callback(partial(self._forget, webhook.id))

    def _forget(self, webhook_id: str, _: asyncio.Task[None]) -> None:
        del self._calls[webhook_id]

    async def _send(self, session: aiohttp.ClientSession, webhook: Webhook) -> None:
        """Make one call, and note what became of it; until that is noted it is not made again."""
        problem = await self._problem(session, webhook)
        again = webhook.tries < len(PAUSES) and problem != str(_GONE)
        due_at = now() + PAUSES[webhook.tries] if again else None
        if problem is not None:
            logger.warning(
                "%s: the webhook was not taken (%s); %s",
                webhook.batch_id,
                problem,
                "it is tried again" if again else "it is given up",
            )

        async def note(db: aiosqlite.Connection) -> None:
            if problem is None:
                await webhook_table.delivered(db, webhook.id, now())
            else:
                await webhook_table.failed(db, webhook.id, problem[:_ERROR_CHARACTERS], due_at)

        while True:
            try:
                await self._store.db.write(note)
                return
            except Exception as error:  # a full disk, say
                if not is_storage_failure(error):
                    logger.exception("What became of %s cannot be noted", webhook.id)
                await asyncio.sleep(_NOTE_SECONDS)

    async def _problem(self, session: aiohttp.ClientSession, webhook: Webhook) -> str | None:
        """Call; return why it was no success, None if it was one."""
        stamp = datetime.fromtimestamp(now(), UTC)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "sglang-blendserve",
            "webhook-id": webhook.id,
            "webhook-timestamp": str(int(stamp.timestamp())),
            "webhook-signature": self._signer.sign(webhook.id, stamp, webhook.body),
        }
        try:
            self._rules.check(webhook.url)  # the allow-list may be another since
            async with session.post(
                webhook.url, data=webhook.body.encode(), headers=headers, allow_redirects=False
            ) as answer:
                return None if 200 <= answer.status < 300 else str(answer.status)
        except (aiohttp.ClientError, NotAllowed, OSError, TimeoutError, ValueError) as error:
            return str(error) or type(error).__name__


def secret_in(path: Path) -> str:
    """Return the secret in a file; one that is not there is made, for its owner alone to read.

    Raises:
        OSError: it cannot be read or made.
        ValueError: it holds none.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        secret = f"whsec_{b64encode(secrets.token_bytes(32)).decode()}"
        with open(open_private(path, os.O_WRONLY | os.O_TRUNC), "w", encoding="utf-8") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
    try:
        key = b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith("whsec_") or len(key) < _LEAST_KEY_BYTES:
        raise ValueError(
            f"{path} holds no secret: it must be whsec_ and at least {_LEAST_KEY_BYTES} bytes in "
            "Base64. Remove it, and one is made"
        )
    return secret
