"""What goes over a link comes out as it went in.

pytest test/engines/test_messages.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sglang.srt.blendserve.answering.engine import Answer
from sglang.srt.blendserve.answering.observer import Observation
from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint
from sglang.srt.blendserve.dispatch.messages import unpack
from sglang.srt.blendserve.engines.link import framed, unframed
from sglang.srt.blendserve.engines.messages import (
    pack_answer,
    pack_line,
    unpack_answer,
    unpack_line,
)


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found}
    return found


BODIES = [{"prompt": "ä\u2028", "n": 2}, nested(300), {"text": "\ud800"}, {"big": 1e300, "x": None}]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("sizes", [None, [], [3], [4, 0, 1]])
def test_a_line(body: dict[str, Any], sizes: list[int] | None) -> None:
    prompts = None if sizes is None else [np.arange(size, dtype=np.int32) for size in sizes]
    line = BatchLine(line=7, custom_id="c", method="POST", url=Endpoint.CHAT, body=body)
    header, data = unpack(pack_line(5, line, "rid", prompts))
    assert header["number"] == 5
    got, rid, ids = unpack_line(header, data)
    assert (got, rid) == (line, "rid")
    if prompts is None or ids is None:
        assert ids is prompts is None
    else:
        assert [one.tolist() for one in ids] == [one.tolist() for one in prompts]


@pytest.mark.parametrize("body", BODIES)
def test_an_answer(body: dict[str, Any]) -> None:
    seen = Observation(
        prompt_tokens=3, completion_tokens=4, cached_tokens=1, retractions=2, aborted=None,
        max_tokens=9, known_length=True, namespace="x", output_lengths=[1, 3],
        prompts=[np.array([5, 6, 7], dtype=np.int32)],
    )  # fmt: skip
    answer = Answer(Response(status_code=200, request_id="r", body=body), seen)
    response, got = unpack_answer(*unpack(pack_answer(1, answer)))
    assert response == answer.response
    assert got.prompts[0].tolist() == [5, 6, 7]
    got.prompts = seen.prompts
    assert got == seen


def test_messages_one_behind_the_other() -> None:
    given = [b"", b"a", b"bc" * 1000]
    assert unframed(b"".join(map(framed, given))) == given
