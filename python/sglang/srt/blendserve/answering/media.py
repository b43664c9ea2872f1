"""Images, videos and recordings of batch lines: where they may come from, and how large they are.

SGLang loads whatever a request names: files of this machine and addresses of any network. Lines of
a batch come from others than who runs the engine, so only what a line holds itself is taken, and
files and hosts that the operator allows. `check_media` looks at a line's body before anything is
loaded; `inline` puts the data into the engine's request in the place of names, so that what was
checked is what is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

from sglang.srt.blendserve.answering.media_rules import MediaRules, Medium
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.batch_file.types import Endpoint

READ_SECONDS = 60.0
"""For a file, on whatever disk it is."""

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

_DATA = ("image_data", "video_data", "audio_data")
"""Members of the engine's request."""


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
            raise medium.refused(what)
        if ".output." in medium.path:
            raise medium.refused("is left out by SGLang: a tool's output is text; leave it out")
        if medium.source is None:
            raise medium.refused("has no address and no data")
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
            raise medium.refused(f"could not be read within {READ_SECONDS:.0f} s") from error
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
