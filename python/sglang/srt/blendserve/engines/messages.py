"""What an engine elsewhere and those who feed it send each other: JSON and bytes, no pickles.

A message is `dispatch.messages.pack` of a header with ``op`` and a body. The bodies of requests and
answers lie in the message's body, as JSON, with token ids behind them as one flat int32 array.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import orjson
from pydantic import TypeAdapter

from sglang.srt.blendserve.answering.engine import Answer
from sglang.srt.blendserve.answering.observer import Observation
from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.dispatch.messages import pack
from sglang.srt.blendserve.pool.pool_request import Tokens

_TOKEN_BYTES = 4
_SEEN = [field.name for field in fields(Observation) if field.name != "prompts"]


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is known of a started engine.

    Attributes:
        kv_slots: tokens that its KV cache holds; None: it has no pool of offline requests.
        most_tokens: of a prompt and its answer.
        cost: what work costs on it; None: nobody knows, ...
        why: ... for this reason.
    """

    kv_slots: int | None
    most_tokens: int
    cost: CostModel | None
    why: str | None = None

    def as_json(self) -> str:
        """Return it as JSON."""
        return _FACTS.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> EngineFacts:
        """Return what `as_json` was called on."""
        return _FACTS.validate_json(text)


_FACTS = TypeAdapter(EngineFacts)


def pack_line(number: int, line: BatchLine, rid: str, prompts: Sequence[Tokens] | None) -> bytes:
    """Return the message that has a line answered; its answer has the same ``number``."""
    body = dump(line.body)
    header = {
        "op": "line",
        "number": number,
        "line": line.line,
        "custom_id": line.custom_id,
        "method": line.method,
        "url": line.url.value,
        "rid": rid,
        "json": len(body),
        "prompts": None if prompts is None else [int(ids.size) for ids in prompts],
    }
    return pack(header, body + _flat(prompts or ()))


def unpack_line(
    header: dict[str, Any], body: bytes
) -> tuple[BatchLine, str, Sequence[Tokens] | None]:
    """Return what `pack_line` was given, but for the number."""
    size = header["json"]
    line = BatchLine(
        line=header["line"],
        custom_id=header["custom_id"],
        method=header["method"],
        url=Endpoint(header["url"]),
        body=load(body[:size]),
    )
    sizes = header["prompts"]
    return line, header["rid"], None if sizes is None else _split(body[size:], sizes)


def pack_answer(number: int, answer: Answer) -> bytes:
    """Return the message that has an answer."""
    response, seen = answer
    body = dump(response.body)
    header = {
        "op": "answer",
        "number": number,
        "status": response.status_code,
        "request_id": response.request_id,
        "json": len(body),
        "seen": {name: getattr(seen, name) for name in _SEEN},
        "prompts": [int(ids.size) for ids in seen.prompts],
    }
    return pack(header, body + _flat(seen.prompts))


def unpack_answer(header: dict[str, Any], body: bytes) -> Answer:
    """Return the answer that `pack_answer` was given."""
    size = header["json"]
    response = Response(
        status_code=header["status"], request_id=header["request_id"], body=load(body[:size])
    )
    seen = Observation(**header["seen"], prompts=[*_split(body[size:], header["prompts"])])
    return Answer(response, seen)


def dump(content: dict[str, Any]) -> bytes:
    """Return an object as JSON, also one that orjson does not write: of 255 levels, or with half a
    surrogate pair in what a model wrote."""
    try:
        return orjson.dumps(content)
    except TypeError:
        return json.dumps(content).encode()


def load(data: bytes) -> dict[str, Any]:
    """Return the object that `dump` was given."""
    try:
        found: dict[str, Any] = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = json.loads(data)
    return found


def _flat(prompts: Sequence[Tokens]) -> bytes:
    return b"".join(np.ascontiguousarray(ids, dtype=np.int32).tobytes() for ids in prompts)


def _split(data: bytes, sizes: Sequence[int]) -> list[Tokens]:
    tokens = np.frombuffer(data, dtype=np.int32, count=sum(sizes))
    return np.split(tokens, np.cumsum(sizes)[:-1]) if sizes else []
