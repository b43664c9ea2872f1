"""What images, videos and recordings hold, as far as it is looked at before SGLang decodes them."""

from __future__ import annotations

import warnings
from io import BytesIO

MOST_PIXELS = 1 << 26
"""Largest width times height of an image, 8,192 squared; as colours it takes 200 MB."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

_KNOWN = {
    "video": "MP4, MOV, WebM, Matroska or AVI",
    "recording": "WAV, MP3, AAC, FLAC, Ogg, AIFF, MP4 or WebM",
}

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


class WrongContent(ValueError):
    """Something is not what it should be, or too large; the message goes on after its name."""


def check_content(kind: str, data: bytes) -> None:
    """Look at how a file begins.

    Args:
        kind: ``image``, ``video`` or ``recording``.
        data: all of the file.

    Raises:
        WrongContent: it is of no known form, or an image of too many pixels.
    """
    if not data:
        raise WrongContent("is empty")
    if kind == "image":
        _check_image(data)
    elif not _is_container(kind, data):
        raise WrongContent(f"is no {kind} of a known kind ({_KNOWN[kind]})")


def _is_container(kind: str, data: bytes) -> bool:
    """Whether a file begins as videos or recordings do, and not as a list of others."""
    if data.startswith(_STARTS[kind]) or data[4:8] == _BOX:
        return True
    if data.startswith(b"RIFF"):
        return data[8:12] == _RIFF[kind]
    first, bits = _MP3_FRAME
    return kind == "recording" and len(data) > 1 and data[0] == first and data[1] & bits == bits


def _check_image(data: bytes) -> None:
    """Look at an image's head: nothing is unpacked.

    Raises:
        WrongContent: it is none, or has too many pixels.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, which are counted here
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise WrongContent(f"has too many pixels; at most {MOST_PIXELS:,}") from error
    except Exception as error:  # of any kind: readers of formats raise what they like
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise WrongContent(f"is no image that can be read ({known})") from error
    if width * height > MOST_PIXELS:
        raise WrongContent(f"has {width} x {height} pixels; at most {MOST_PIXELS:,}")
