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
from sglang.srt.blendserve.answering.media_fetch import NotFetched, fetch
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.settings import Settings

MOST_PIXELS = 1 << 26
"""Largest width times height of an image, 8,192 squared; as colours it takes 200 MB."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

_KINDS = {
    "image_url": "image",
    "image": "image",
    "images": "image",
    "video_url": "video",
    "video": "video",
    "audio_url": "recording",
    "audio": "recording",
    "input_audio": "recording",
}
"""Members of content parts that hold media -> what they are."""

_MEMBERS = ("messages", "input", "query", "documents", "items")
"""Members of a body in which there may be content parts."""

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
        scheme = source[:16].partition(":")[0].lower()
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
                self.hosts.check(source)
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
            with open(file, "rb") as opened:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise _refused(medium, "names something that is no file")
                return opened.read(self.most_bytes + 1)
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


def media_in(body: dict[str, Any]) -> Iterator[Medium]:
    """Yield the images, videos and recordings of a line's body, in their order."""
    for name in _MEMBERS:
        if name in body and not isinstance(body[name], str):
            yield from _media_below(name, body[name])


def check_media(body: dict[str, Any], rules: MediaRules, *, taken: bool) -> None:
    """Refuse a line with media that the model or the operator does not take.

    Args:
        taken: whether the model takes any.

    Raises:
        RequestRefused: says which field, and what to do.
    """
    for medium in media_in(body):
        if not taken:
            what = "is not taken: this model is run for text only (some take --enable-multimodal)"
            raise _refused(medium, what)
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
        found = await asyncio.to_thread(rules.read, medium, source)
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


def _media_below(path: str, value: Any) -> Iterator[Medium]:
    if isinstance(value, list):
        for index, one in enumerate(value):
            if isinstance(one, dict | list):
                yield from _media_below(f"{path}.{index}", one)
        return
    for name, member in value.items():
        if (kind := _KINDS.get(name)) is not None:
            yield from _sources(f"{path}.{name}", kind, member)
        elif name == "content" and isinstance(member, dict | list):
            yield from _media_below(f"{path}.{name}", member)


def _sources(path: str, kind: str, value: Any) -> Iterator[Medium]:
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from _sources(f"{path}.{index}", kind, one)
    elif isinstance(value, dict) and "data" in value:  # OpenAI's recordings, Base64 as it is
        data = value["data"]
        source = f"data:;base64,{data}" if isinstance(data, str) else None
        yield Medium(f"{path}.data", kind, source)
    elif isinstance(value, dict):
        source = value.get("url")
        yield Medium(f"{path}.url", kind, source if isinstance(source, str) else None)
    elif value is not None:
        yield Medium(path, kind, value if isinstance(value, str) else None)


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
