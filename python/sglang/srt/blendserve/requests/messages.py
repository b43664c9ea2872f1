"""What the preparing process and its workers send each other: JSON and arrays, no pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson

from sglang.srt.blendserve.requests.columns import COLUMNS, TOKEN, Array
from sglang.srt.blendserve.requests.line_blocks import Block

_SIZE_BYTES = 4


class Work(NamedTuple):
    """A block to prepare, and its bytes where the worker cannot read them itself."""

    block: Block
    data: bytes | None


def pack_work(work: Work) -> bytes:
    """Return a message that says what to do."""
    return _pack([*work.block], b"" if work.data is None else b"1" + work.data)


def unpack_work(message: bytes) -> Work:
    """Return what `pack_work` was given."""
    header, rest = _unpack(message)
    return Work(Block(*header), bytes(rest[1:]) if rest else None)


@dataclass(slots=True)
class Prepared:
    """What a block has come to.

    Attributes:
        number: the block's.
        lines: number, custom_id or None, and model or None of each line, in order.
        namespaces: those of the rows; ``namespace`` counts from 0 here.
        errors: as JSON has them, of lines that are no requests or refused.
        columns: (rows,) arrays for all `COLUMNS` but ``offset``; ``model`` is not filled in.
        tokens: token ids of the rows, one after another.
    """

    number: int
    lines: list[tuple[int, str | None, str | None]] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    columns: Mapping[str, Array] = field(default_factory=dict)
    tokens: Array = field(default_factory=lambda: np.zeros(0, dtype=TOKEN))


def pack_prepared(result: Prepared) -> bytes:
    """Return a message that holds a block's rows."""
    header = [result.number, result.lines, result.namespaces, result.errors]
    given = [result.columns[name] for name in _GIVEN]
    body = b"".join(
        array.astype(dtype, copy=False).tobytes()
        for array, dtype in zip([*given, result.tokens], [*_GIVEN.values(), TOKEN], strict=True)
    )
    return _pack([len(given[0]), *header], body)


def unpack_prepared(message: bytes) -> Prepared:
    """Return what `pack_prepared` was given."""
    (rows, number, lines, namespaces, errors), rest = _unpack(message)
    columns, place = {}, 0
    for name, dtype in _GIVEN.items():
        columns[name] = np.frombuffer(rest, dtype, rows, place).copy()
        place += rows * dtype.itemsize
    tokens = np.frombuffer(rest, TOKEN, -1, place) if place < len(rest) else np.zeros(0, TOKEN)
    return Prepared(number, [tuple(one) for one in lines], namespaces, errors, columns, tokens)


_GIVEN = {name: dtype for name, dtype in COLUMNS.items() if name != "offset"}


def _pack(header: list[Any], body: bytes) -> bytes:
    packed = orjson.dumps(header)
    return len(packed).to_bytes(_SIZE_BYTES, "little") + packed + body


def _unpack(message: bytes) -> tuple[list[Any], bytes]:
    size = int.from_bytes(message[:_SIZE_BYTES], "little") + _SIZE_BYTES
    return orjson.loads(message[_SIZE_BYTES:size]), message[size:]
