"""Where images, videos and recordings of batch lines may come from, and what is read there."""

from __future__ import annotations

import asyncio
import os
import stat
import string
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from sglang.srt.blendserve.allowed_hosts import AllowedHosts, NotAllowed
from sglang.srt.blendserve.answering.media_content import WrongContent, check_content
from sglang.srt.blendserve.answering.media_fetch import LONGEST_URL, NotFetched, fetch
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.settings import Settings

_BASE64 = frozenset(f"{string.ascii_letters}{string.digits}+/=")


class Medium(NamedTuple):
    """An image, a video or a recording in a line's body.

    Attributes:
        path: the field, as ``messages.0.content.1.image_url.url``.
        kind: in English.
        source: its address, its data or its file; None where there is something else.
    """

    path: str
    kind: str
    source: str | None

    def refused(self, what: str) -> RequestRefused:
        """Return why the line is refused.

        Args:
            what: goes on after the field's name, without a full stop.
        """
        named = self.path or f"the {self.kind}"
        return RequestRefused(f"{named} {what}.", self.path or None)


@dataclass(frozen=True, slots=True)
class MediaRules:
    """What lines may have.

    Attributes:
        hosts: may be asked for media.
        root: files below it may be named; None: no file may.
        most_bytes: of one image, video or recording, as it is encoded.
    """

    hosts: AllowedHosts
    root: Path | None
    most_bytes: int

    @classmethod
    def of(cls, server_args: Any) -> MediaRules:
        """Return those of an engine's server arguments; without any, the defaults."""
        settings = getattr(server_args, "blendserve", None) or Settings()
        root = Path(settings.media_root).resolve() if settings.media_root else None
        return cls(settings.allowed_media_hosts, root, settings.media_bytes)

    def read(self, medium: Medium, source: str) -> str | None:
        """Return what a line holds or a file has, as a ``data:`` address; None if it is elsewhere.

        Raises:
            RequestRefused: it is not allowed, cannot be read, or is too large.
        """
        scheme, colon, _ = source[:16].partition(":")
        scheme = scheme.lower() if colon else ""
        if scheme == "data":
            source = f"data{source[4:]}"  # SGLang knows it in small letters
            self._check_data(medium, _decoded(medium, source))
            return source
        if scheme in ("http", "https"):
            if not self.hosts.hosts:
                raise medium.refused(
                    "is to be fetched, and no host is allowed (--blendserve-media-hosts)"
                )
            try:
                self.hosts.check(source.partition("#")[0], longest=LONGEST_URL)
            except NotAllowed as error:
                raise medium.refused(f"cannot be fetched: {error}") from error
            return None
        data = self._file(medium, source)
        self._check_data(medium, data)
        return _as_address(data)

    async def fetched(self, medium: Medium, source: str) -> str:
        """Fetch what is elsewhere; return it as a ``data:`` address.

        Raises:
            RequestRefused: it cannot be had, or is too large.
        """
        try:
            data = await fetch(source, self.hosts, self.most_bytes)
        except (NotFetched, NotAllowed) as error:
            raise medium.refused(f"cannot be fetched: {error}") from error
        return await asyncio.to_thread(self._checked, medium, data)

    def _checked(self, medium: Medium, data: bytes) -> str:
        self._check_data(medium, data)
        return _as_address(data)

    def _file(self, medium: Medium, source: str) -> bytes:
        """Return what a file holds.

        Raises:
            RequestRefused: it is none, or lies elsewhere, or cannot be read.
        """
        if self.root is None:
            what = "names a file, and no folder is allowed (--blendserve-media-root)"
            if not set(source[:64]).difference(_BASE64):
                what = "must begin with data:image/png;base64, or another type, if it is Base64"
            raise medium.refused(what)
        try:
            scheme, host, in_address, *_ = urlsplit(source)
        except ValueError:
            scheme, host, in_address = "none", "", ""
        if scheme not in ("", "file") or host not in ("", "localhost"):
            raise medium.refused("must be a data:, https: or file: address, or a file's name")
        name = unquote(in_address) if scheme else source
        try:
            path = (self.root / name).resolve(strict=True)
            if not path.is_relative_to(self.root):
                raise medium.refused("names a file outside of --blendserve-media-root")
            # Nothing that a name may lead to is waited for.
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise medium.refused("names something that is no file")
                return _read(file, self.most_bytes + 1)
            finally:
                os.close(file)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, RequestRefused):
                raise
            reason = getattr(error, "strerror", None) or "it is no file's name"
            raise medium.refused(f"names a file that cannot be read: {reason}") from error

    def _check_data(self, medium: Medium, data: bytes) -> None:
        if len(data) > self.most_bytes:
            raise medium.refused(
                f"has more than {self.most_bytes:,} bytes (--blendserve-media-bytes); "
                "make it smaller",
            )
        try:
            check_content(medium.kind, data)
        except WrongContent as error:
            raise medium.refused(str(error)) from error


def _read(file: int, most: int) -> bytes:
    """Return what a file holds, at most so many bytes."""
    parts, size = [], 0
    while size < most and (part := os.read(file, min(most - size, 1 << 20))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _decoded(medium: Medium, source: str) -> bytes:
    head, comma, encoded = source.partition(",")
    if not comma or not head.endswith(";base64"):
        what = "must begin with data:TYPE;base64, as in data:image/png;base64,iVBO..."
        raise medium.refused(what)
    try:
        return b64decode(encoded, validate=True)
    except (Base64Error, ValueError) as error:
        raise medium.refused(f"is not Base64 ({error})") from error


def _as_address(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{b64encode(data).decode()}"
