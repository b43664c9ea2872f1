"""Messages through a connected socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from sglang.srt.blendserve.engines.link import LinkClosed, frame_size, framed

_HEAD = 4


class SocketMessages:
    """One end of a socket pair; see `link.Link`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> SocketMessages:
        """Return the messages through one socket of a pair, which is theirs from now on."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: bytes) -> None:
        """Send a message, sooner or later; to nobody it does nothing."""
        if not self._writer.is_closing():
            self._writer.write(framed(message))

    async def receive(self) -> bytes:
        """Return the next message. Raises LinkClosed where there will be none."""
        try:
            head = await self._reader.readexactly(_HEAD)
            return await self._reader.readexactly(frame_size(head))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise LinkClosed("the other end is gone") from error

    async def flush(self) -> None:
        """Return when all that was sent is on its way."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    def close(self) -> None:
        """Send nothing more."""
        self._writer.close()
