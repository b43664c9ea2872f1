"""The way to one engine elsewhere and back."""

from __future__ import annotations

from typing import Protocol

_SIZE_BYTES = 4


class LinkClosed(ConnectionError):
    """The engine at the other end is gone."""


class Link(Protocol):
    """Messages to an engine and from it, in order. All of it runs on one event loop."""

    def send(self, message: bytes) -> None:
        """Send a message, sooner or later; to an engine that is gone it does nothing."""
        ...

    async def receive(self) -> bytes:
        """Return the next message.

        Raises:
            LinkClosed: there will be none.
        """
        ...

    def kill(self) -> None:
        """End the engine at once; `receive` raises soon."""
        ...

    async def close(self) -> None:
        """End the engine, in order if that is a matter of seconds. Twice it does nothing."""
        ...


def framed(message: bytes) -> bytes:
    """Return a message as it goes through a stream."""
    return len(message).to_bytes(_SIZE_BYTES, "little") + message


def frame_size(head: bytes) -> int:
    """Return how many bytes follow the first four, ``head``."""
    return int.from_bytes(head, "little")


def unframed(data: bytes) -> list[bytes]:
    """Return the messages of several `framed` ones, one behind the other."""
    found, at = [], 0
    while at < len(data):
        end = at + _SIZE_BYTES + frame_size(data[at : at + _SIZE_BYTES])
        found.append(data[at + _SIZE_BYTES : end])
        at = end
    return found
