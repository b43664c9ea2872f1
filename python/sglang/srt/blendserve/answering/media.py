"""Images, videos and recordings of batch lines: where they may come from, and how large they are.

SGLang loads whatever a request names: files of this machine and addresses of any network. Lines of
a batch come from others than who runs the engine, so only what a line holds itself is taken, and
files and hosts that the operator allows. `check_media` looks at a line's body before anything is
loaded; `inline` puts the data into the engine's request in the place of names, so that what was
checked is what is used.
"""

from __future__ import annotations

import asyncio
import os
import stat
import string
import warnings
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from sglang.srt.blendserve.allowed_hosts import AllowedHosts, NotAllowed
from sglang.srt.blendserve.answering.media_fetch import LONGEST_URL, NotFetched, fetch
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.batch_file.types import Endpoint
from sglang.srt.blendserve.settings import Settings

MOST_PIXELS = 1 << 26
"""Largest width times height of an image, 8,192 squared; as colours it takes 200 MB."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

READ_SECONDS = 60.0
"""For a file, on whatever disk it is."""

_BASE64 = frozenset(f"{string.ascii_letters}{string.digits}+/=")

_KNOWN = {
    "video": "MP4, MOV, WebM, Matroska or AVI",
    "recording": "WAV, MP3, AAC, FLAC, Ogg, AIFF, MP4 or WebM",
}

_PARTS = {
    "image_url": ("image_url", "image"),
    "input_image": ("image_url", "image"),
    "video_url": ("video_url", "video"),
    "audio_url": ("audio_url", "recording"),
    "input_audio": ("input_audio", "recording"),
}
"""Types of content parts that hold media -> the member with it, and what it is."""

_INPUTS = {"image": "image", "video": "video"}
"""Members of an embedding's input -> what they are."""

_STARTS = {
    "video": (b"\x1a\x45\xdf\xa3",),
    "recording": (b"\x1a\x45\xdf\xa3", b"ID3", b"OggS", b"fLaC", b"FORM"),
}
"""What files of videos and recordings begin with: Matroska and WebM, MP3, Ogg, FLAC, AIFF. Others
are refused: what is decoded must not name another file."""

_RIFF = {"video": b"AVI ", "recording": b"WAVE"}
"""What a file that begins with RIFF has from byte 8 on."""

_BOX = b"ftyp"
"""What stands in an MP4 or MOV file from byte 4 on."""

_MP3_FRAME = (0xFF, 0xE0)
"""The first byte of an MP3 or AAC frame, and the bits that its second byte has."""

_DATA = ("image_data", "video_data", "audio_data")
"""Members of the engine's request."""


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
            self._check_size(medium, _decoded(medium, source))
            return source
        if scheme in ("http", "https"):
            if not self.hosts.hosts:
                raise _refused(
                    medium, "is to be fetched, and no host is allowed (--blendserve-media-hosts)"
                )
            try:
                self.hosts.check(source.partition("#")[0], longest=LONGEST_URL)
            except NotAllowed as error:
                raise _refused(medium, f"cannot be fetched: {error}") from error
            return None
        data = self._file(medium, source)
        self._check_size(medium, data)
        return _as_address(data)

    async def fetched(self, medium: Medium, source: str) -> str:
        """Fetch what is elsewhere; return it as a ``data:`` address.

        Raises:
            RequestRefused: it cannot be had, or is too large.
        """
        try:
            data = await fetch(source, self.hosts, self.most_bytes)
        except (NotFetched, NotAllowed) as error:
            raise _refused(medium, f"cannot be fetched: {error}") from error
        return await asyncio.to_thread(self._checked, medium, data)

    def _checked(self, medium: Medium, data: bytes) -> str:
        self._check_size(medium, data)
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
            raise _refused(medium, what)
        try:
            scheme, host, in_address, *_ = urlsplit(source)
        except ValueError:
            scheme, host, in_address = "none", "", ""
        if scheme not in ("", "file") or host not in ("", "localhost"):
            raise _refused(medium, "must be a data:, https: or file: address, or a file's name")
        name = unquote(in_address) if scheme else source
        try:
            path = (self.root / name).resolve(strict=True)
            if not path.is_relative_to(self.root):
                raise _refused(medium, "names a file outside of --blendserve-media-root")
            # Nothing that a name may lead to is waited for.
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise _refused(medium, "names something that is no file")
                return _read(file, self.most_bytes + 1)
            finally:
                os.close(file)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, RequestRefused):
                raise
            reason = getattr(error, "strerror", None) or "it is no file's name"
            raise _refused(medium, f"names a file that cannot be read: {reason}") from error

    def _check_size(self, medium: Medium, data: bytes) -> None:
        if len(data) > self.most_bytes:
            raise _refused(
                medium,
                f"has more than {self.most_bytes:,} bytes (--blendserve-media-bytes); "
                "make it smaller",
            )
        if not data:
            raise _refused(medium, "is empty")
        if medium.kind == "image":
            _check_image(medium, data)
        elif not _is_container(medium.kind, data):
            raise _refused(medium, f"is no {medium.kind} of a known kind ({_KNOWN[medium.kind]})")


def media_in(body: dict[str, Any], url: Endpoint) -> Iterator[Medium]:
    """Yield the images, videos and recordings of a line's body, in their order.

    They are those that SGLang's handlers take from it; members with other data may have any names.

    Args:
        url: the line's endpoint.
    """
    if url in (Endpoint.CHAT, Endpoint.RESPONSES):
        name = "messages" if url is Endpoint.CHAT else "input"
        for number, message in _listed(body.get(name)):
            for member in ("content", "output"):  # of a tool's, in a response
                yield from _parts(f"{name}.{number}.{member}", message.get(member))
    elif url is Endpoint.EMBEDDINGS:
        for number, one in _listed(body.get("input")):
            for member, kind in _INPUTS.items():
                if one.get(member) is not None:
                    yield _medium(f"input.{number}.{member}", kind, one[member])
    elif url is Endpoint.RERANK:
        yield from _parts("query", body.get("query"))
        documents = body.get("documents")
        for number, one in enumerate(documents if isinstance(documents, list) else ()):
            yield from _parts(f"documents.{number}", one)


def check_media(body: dict[str, Any], url: Endpoint, rules: MediaRules, *, taken: bool) -> None:
    """Refuse a line with media that the model or the operator does not take.

    Args:
        url: the line's endpoint.
        taken: whether the model takes any.

    Raises:
        RequestRefused: says which field, and what to do.
    """
    for medium in media_in(body, url):
        if not taken:
            what = "is not taken: this model is run for text only (some take --enable-multimodal)"
            raise _refused(medium, what)
        if ".output." in medium.path:
            raise _refused(medium, "is left out by SGLang: a tool's output is text; leave it out")
        if medium.source is None:
            raise _refused(medium, "has no address and no data")
        rules.read(medium, medium.source)


def inline_local(request: Any, rules: MediaRules) -> bool:
    """Put the data of files into an engine's request; say whether it names nothing else.

    Raises:
        RequestRefused: as `MediaRules.read`.
    """
    whole = True
    for place, medium in _media_of(request):
        found = rules.read(medium, medium.source or "")
        whole = whole and found is not None
        if found is not None:
            place.put(found)
    return whole


async def inline(request: Any, rules: MediaRules) -> None:
    """Put the data of all media into an engine's request.

    Raises:
        RequestRefused: something is not allowed, cannot be had, or is too large.
    """
    for place, medium in [*_media_of(request)]:
        source = medium.source or ""
        try:
            async with asyncio.timeout(READ_SECONDS):
                found = await asyncio.to_thread(rules.read, medium, source)
        except TimeoutError as error:
            raise _refused(medium, f"could not be read within {READ_SECONDS:.0f} s") from error
        place.put(found if found is not None else await rules.fetched(medium, source))


class _Place(NamedTuple):
    holder: Any
    key: int | str

    def put(self, source: str) -> None:
        if isinstance(self.holder, list):
            self.holder[int(self.key)] = source
        else:
            setattr(self.holder, str(self.key), source)


def _media_of(request: Any) -> Iterator[tuple[_Place, Medium]]:
    """Yield the media of an engine's request, and where each stands in it.

    Raises:
        RequestRefused: there is something that is neither an address nor data.
    """
    for name in _DATA:
        kind = {"image_data": "image", "video_data": "video"}.get(name, "recording")
        value = getattr(request, name, None)
        if isinstance(value, str):
            setattr(request, name, value := [value])
        for place, source in _places(request, name, value):
            yield place, Medium("", kind, source)


def _places(holder: Any, key: int | str, value: Any) -> Iterator[tuple[_Place, str]]:
    if value is None:
        return
    if isinstance(value, str):
        yield _Place(holder, key), value
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _places(value, index, one)
    elif isinstance(getattr(value, "url", None), str):
        yield _Place(value, "url"), value.url
    else:
        raise RequestRefused("images, videos and recordings must be addresses or data.")


def _listed(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a list, with their places."""
    for number, one in enumerate(value if isinstance(value, list) else ()):
        if isinstance(one, dict):
            yield number, one


def _parts(path: str, content: Any) -> Iterator[Medium]:
    """Yield the media of a list of content parts."""
    for number, part in _listed(content):
        kind = part.get("type")
        member, what = _PARTS.get(kind, ("", "")) if isinstance(kind, str) else ("", "")
        if member:
            yield _medium(f"{path}.{number}.{member}", what, part.get(member))


def _medium(path: str, kind: str, value: Any) -> Medium:
    if isinstance(value, dict) and "data" in value:  # OpenAI's recordings, Base64 as it is
        data = value["data"]
        return Medium(f"{path}.data", kind, f"data:;base64,{data}")
    if isinstance(value, dict):
        path, value = f"{path}.url", value.get("url")
    return Medium(path, kind, value if isinstance(value, str) else None)


def _read(file: int, most: int) -> bytes:
    """Return what a file holds, at most so many bytes."""
    parts, size = [], 0
    while size < most and (part := os.read(file, min(most - size, 1 << 20))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _is_container(kind: str, data: bytes) -> bool:
    """Whether a file begins as videos or recordings do, and not as a list of others."""
    if data.startswith(_STARTS[kind]) or data[4:8] == _BOX:
        return True
    if data.startswith(b"RIFF"):
        return data[8:12] == _RIFF[kind]
    first, bits = _MP3_FRAME
    return kind == "recording" and len(data) > 1 and data[0] == first and data[1] & bits == bits


def _decoded(medium: Medium, source: str) -> bytes:
    head, comma, encoded = source.partition(",")
    if not comma or not head.endswith(";base64"):
        what = "must begin with data:TYPE;base64, as in data:image/png;base64,iVBO..."
        raise _refused(medium, what)
    try:
        return b64decode(encoded, validate=True)
    except (Base64Error, ValueError) as error:
        raise _refused(medium, f"is not Base64 ({error})") from error


def _as_address(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{b64encode(data).decode()}"


def _check_image(medium: Medium, data: bytes) -> None:
    """Look at an image's head: nothing is unpacked.

    Raises:
        RequestRefused: it is none, or has too many pixels.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, which are counted here
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise _refused(medium, f"has too many pixels; at most {MOST_PIXELS:,}") from error
    except Exception as error:  # of any kind: readers of formats raise what they like
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise _refused(medium, f"is no image that can be read ({known})") from error
    if width * height > MOST_PIXELS:
        raise _refused(medium, f"has {width} x {height} pixels; at most {MOST_PIXELS:,}")


def _refused(medium: Medium, what: str) -> RequestRefused:
    named = medium.path or f"the {medium.kind}"
    return RequestRefused(f"{named} {what}.", medium.path or None)
