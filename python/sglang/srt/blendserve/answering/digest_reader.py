"""Read a stream line by line, and know how far and what bytes: two readings must see the same."""

from __future__ import annotations

from hashlib import blake2b

from sglang.srt.blendserve.batch_file.lines import ByteStream


class DigestReader:
    """Counts the bytes that are read through it, and computes their digest (BLAKE2b)."""

    def __init__(self, stream: ByteStream) -> None:
        """Read ``stream`` from where it stands."""
        self._stream = stream
        self._hash = blake2b(digest_size=32)
        self._position = 0

    def tell(self) -> int:
        """Return how many bytes have been read."""
        return self._position

    def readline(self, size: int, /) -> bytes:
        """Return the next line, or its next ``size`` bytes; nothing at the end."""
        data = self._stream.readline(size)
        self._hash.update(data)
        self._position += len(data)
        return data

    @property
    def digest(self) -> str:
        """The digest of what has been read, in hexadecimal."""
        return self._hash.hexdigest()
