"""How long the answers to a line may be, as its body says.

pytest test/batch_file/test_output_caps.py
"""

from __future__ import annotations

from typing import Any

import pytest

from sglang.srt.blendserve.answering.line_source import scan
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint


def line(url: str = "/v1/chat/completions", **body: Any) -> BatchLine:
    return BatchLine(line=1, custom_id="a", method="POST", url=Endpoint(url), body=body)


@pytest.mark.parametrize(
    ("body", "cap"),
    [
        ({}, None),
        ({"max_tokens": 20}, 20),
        ({"max_tokens": 64.0}, 64),
        ({"max_output_tokens": 7}, None),
        ({"max_completion_tokens": 5, "max_tokens": 20}, 5),
        ({"max_completion_tokens": 0, "max_tokens": 20}, 20),
        ({"max_tokens": 20, "n": 3}, 60),
        ({"max_tokens": 20, "n": None}, 20),
        ({"max_tokens": 20, "n": "3"}, None),
        ({"max_tokens": "20"}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": -4}, 0),
        ({"max_tokens": 1e300, "n": 2}, 2 << 20),
        ({"max_tokens": 2**64}, 1 << 20),
    ],
)
def test_a_chat_s_cap(body: dict[str, Any], cap: int | None) -> None:
    assert line(**body).output_cap == cap


@pytest.mark.parametrize(
    ("body", "cap"),
    [
        ({"prompt": "a"}, 16),
        ({"prompt": "a", "max_tokens": 20, "max_completion_tokens": 5}, 20),
        ({"prompt": ["a", "b", "c"], "max_tokens": 20, "n": 2}, 120),
        ({"prompt": [1, 2, 3], "max_tokens": 20}, 20),
        ({"prompt": [[1, 2], [3]], "max_tokens": 20}, 40),
        ({"prompt": []}, 16),
    ],
)
def test_a_completion_s_cap_is_of_each_prompt(body: dict[str, Any], cap: int) -> None:
    assert line("/v1/completions", **body).output_cap == cap


def test_caps_of_other_endpoints() -> None:
    assert line("/v1/responses", max_output_tokens=7, max_tokens=9).output_cap == 7
    assert line("/v1/embeddings", max_tokens=9).output_cap is None


def test_a_file_has_a_cap_where_all_of_its_lines_have_one() -> None:
    capped = [line(max_tokens=number) for number in (1, 20, 300)]
    assert scan(capped).output_caps == 321
    assert scan([*capped, line()]).output_caps is None
    assert scan([line(), *capped]).output_caps is None
    assert scan([]).output_caps == 0
