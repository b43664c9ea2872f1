"""Result lines have OpenAI's form, and every one of them can be told apart."""

from __future__ import annotations

import json

from sglang.srt.blendserve.batch_file.results import Response, answer, output_id, refusal
from sglang.srt.blendserve.batch_file.types import ErrorCode, LineError


def test_success() -> None:
    response = Response(
        status_code=200, request_id="r", body={"object": "chat.completion", "x": "é\n"}
    )
    line = answer("job", 3, "a", response)
    assert line.succeeded
    written = line.to_json()
    assert written.count(b"\n") == 1
    assert written.endswith(b"\n")
    assert json.loads(written) == {
        "id": output_id("job", 3),
        "custom_id": "a",
        "response": {
            "status_code": 200,
            "request_id": "r",
            "body": {"object": "chat.completion", "x": "é\n"},
        },
        "error": None,
    }


def test_refused_by_the_endpoint() -> None:
    body = {"error": {"message": "no", "type": "BadRequest", "param": None, "code": 400}}
    line = answer("job", 3, "a", Response(status_code=400, request_id="r", body=body))
    assert not line.succeeded
    assert json.loads(line.to_json())["error"] is None


def test_refused_before_the_endpoint() -> None:
    error = LineError(code=ErrorCode.INVALID_JSON_LINE, message="Line 7: no", line=7)
    line = refusal("job", error)
    assert not line.succeeded
    assert json.loads(line.to_json()) == {
        "id": output_id("job", 7),
        "custom_id": None,
        "response": None,
        "error": {"code": "invalid_json_line", "message": "Line 7: no", "param": None, "line": 7},
    }


def test_batch_error_has_the_four_fields_of_openai() -> None:
    error = LineError(code=ErrorCode.URL_MISMATCH, message="m", param="url", line=1, custom_id="a")
    assert error.to_batch_error() == {
        "code": "url_mismatch",
        "message": "m",
        "param": "url",
        "line": 1,
    }


def test_ids_are_repeatable_and_distinct() -> None:
    ids = {output_id(job, line) for job in ("a", "b") for line in range(100)}
    assert len(ids) == 200
    assert output_id("a", 1) == output_id("a", 1)
    assert all(i.startswith("batch_req_") for i in ids)


def test_characters_at_which_clients_split_lines_are_escaped() -> None:
    text = "a\u2028b\u2029c\x85d\\\u2028"
    body = {"text": text, text: text}
    written = answer("job", 3, text, Response(status_code=200, request_id="r", body=body)).to_json()
    assert written.decode().splitlines() == [written.decode().removesuffix("\n")]
    found = json.loads(written)
    assert found["custom_id"] == text
    assert found["response"]["body"] == body
