"""The batch file format: every line that is not blank ends as exactly one request or one error."""

from __future__ import annotations

import gzip
import io
import json
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.blendserve.batch_file import line_check
from sglang.srt.blendserve.batch_file.line_check import MAX_CHOICES
from sglang.srt.blendserve.batch_file.types import (
    BatchFileError,
    BatchLine,
    Endpoint,
    ErrorCode,
    LineError,
)
from sglang.srt.blendserve.batch_file.validation import Rules, parse_lines

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def request(custom_id: Any = "a", **changes: Any) -> dict[str, Any]:
    """A valid chat line with top-level fields changed; ``...`` removes a field."""
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    line.update(changes)
    return {name: value for name, value in line.items() if value is not ...}


def parse(*lines: Any, rules: Rules | None = None) -> list[BatchLine | LineError]:
    data = b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    return list(parse_lines(io.BytesIO(data), rules))


def only_error(line: Any, rules: Rules | None = None) -> LineError:
    [outcome] = parse(line, rules=rules)
    assert isinstance(outcome, LineError)
    assert outcome.line == 1
    assert outcome.message.startswith("Line 1: ")
    return outcome


def test_a_valid_line_of_each_endpoint() -> None:
    bodies = {
        Endpoint.CHAT: CHAT,
        Endpoint.COMPLETIONS: {"prompt": "hi"},
        Endpoint.EMBEDDINGS: {"input": ["a", "b"]},
    }
    lines = [request(str(i), url=url, body=body) for i, (url, body) in enumerate(bodies.items())]
    outcomes = parse(*lines)
    assert [o.url for o in outcomes if isinstance(o, BatchLine)] == list(bodies)
    assert [o.body for o in outcomes if isinstance(o, BatchLine)] == list(bodies.values())
    assert [o.line for o in outcomes] == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", ErrorCode.INVALID_JSON_LINE, None),
        (b"[1]", ErrorCode.INVALID_JSON_LINE, None),
        (b"null", ErrorCode.INVALID_JSON_LINE, None),
        (b'{"custom_id": "\xff"}', ErrorCode.INVALID_JSON_LINE, None),
        (b'{"custom_id": "\\ud800"}', ErrorCode.INVALID_JSON_LINE, None),
        (b"[" * 100_000, ErrorCode.INVALID_JSON_LINE, None),
        (b'{"x": NaN}', ErrorCode.INVALID_JSON_LINE, None),
        (b"{} {}", ErrorCode.INVALID_JSON_LINE, None),
        (request(...), ErrorCode.MISSING_REQUIRED_PARAMETER, "custom_id"),
        (request(None), ErrorCode.MISSING_REQUIRED_PARAMETER, "custom_id"),
        (request(""), ErrorCode.INVALID_VALUE, "custom_id"),
        (request(7), ErrorCode.INVALID_TYPE, "custom_id"),
        (request(method=...), ErrorCode.MISSING_REQUIRED_PARAMETER, "method"),
        (request(method="GET"), ErrorCode.UNSUPPORTED_METHOD, "method"),
        (request(method=1), ErrorCode.INVALID_TYPE, "method"),
        (request(url=...), ErrorCode.MISSING_REQUIRED_PARAMETER, "url"),
        (request(url="/v1/images"), ErrorCode.UNSUPPORTED_URL, "url"),
        (request(url=["/v1/completions"]), ErrorCode.INVALID_TYPE, "url"),
        (request(body=...), ErrorCode.MISSING_REQUIRED_PARAMETER, "body"),
        (request(body="hi"), ErrorCode.INVALID_TYPE, "body"),
        (request(body={}), ErrorCode.MISSING_REQUIRED_PARAMETER, "body.messages"),
        (request(body={"messages": "hi"}), ErrorCode.INVALID_TYPE, "body.messages"),
        (request(url="/v1/completions"), ErrorCode.MISSING_REQUIRED_PARAMETER, "body.prompt"),
        (request(url="/v1/embeddings"), ErrorCode.MISSING_REQUIRED_PARAMETER, "body.input"),
        (request(body={**CHAT, "model": 3}), ErrorCode.INVALID_TYPE, "body.model"),
        (request(body={**CHAT, "stream": True}), ErrorCode.STREAMING_UNSUPPORTED, "body.stream"),
        (request(body={**CHAT, "stream": "yes"}), ErrorCode.INVALID_TYPE, "body.stream"),
        (request(body={**CHAT, "n": 0}), ErrorCode.INVALID_VALUE, "body.n"),
        (request(body={**CHAT, "n": MAX_CHOICES + 1}), ErrorCode.INVALID_VALUE, "body.n"),
        (request(body={**CHAT, "n": True}), ErrorCode.INVALID_TYPE, "body.n"),
        (request(body={**CHAT, "n": 1.5}), ErrorCode.INVALID_TYPE, "body.n"),
    ],
)
def test_a_bad_line_is_one_error(line: Any, code: ErrorCode, param: str | None) -> None:
    error = only_error(line)
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize("changes", [{"url": "/x"}, {"method": "GET"}, {"body": []}])
def test_an_error_names_a_usable_custom_id(changes: dict[str, Any]) -> None:
    assert only_error(request("mine", **changes)).custom_id == "mine"


def test_fields_that_may_be_null() -> None:
    [outcome] = parse(request(body={**CHAT, "model": None, "stream": None, "n": None}))
    assert isinstance(outcome, BatchLine)


def test_duplicates_are_refused_and_the_first_is_kept() -> None:
    first, bad, second, other = parse(
        request("a"), request("b", url="/x"), request("a"), request("b")
    )
    assert isinstance(first, BatchLine)
    assert isinstance(bad, LineError)
    assert bad.code is ErrorCode.UNSUPPORTED_URL
    for line, duplicate in ((3, second), (4, other)):
        assert isinstance(duplicate, LineError)
        assert (duplicate.code, duplicate.line) == (ErrorCode.DUPLICATE_CUSTOM_ID, line)


def test_blank_lines_crlf_bom_and_no_last_newline() -> None:
    a, b = json.dumps(request("a")).encode(), json.dumps(request("b")).encode()
    data = b"\xef\xbb\xbf\r\n" + a + b"\r\n \t\n\n\n  " + b
    outcomes = list(parse_lines(io.BytesIO(data)))
    assert [(o.line, o.custom_id) for o in outcomes] == [(2, "a"), (6, "b")]
    assert all(isinstance(o, BatchLine) for o in outcomes)


def test_unicode_line_separators_do_not_end_a_line() -> None:
    text = "\u2028\u2029\x85"
    [outcome] = list(
        parse_lines(io.BytesIO(json.dumps(request(text), ensure_ascii=False).encode()))
    )
    assert outcome.custom_id == text


def test_url_of_another_batch() -> None:
    rules = Rules(endpoint=Endpoint.COMPLETIONS)
    assert only_error(request(), rules).code is ErrorCode.URL_MISMATCH
    assert only_error(request(url="/x"), rules).code is ErrorCode.UNSUPPORTED_URL


def test_one_model_a_file_with_its_adapters() -> None:
    models = ["m", None, "m:sql", "other", "m"]
    outcomes = parse(*(request(str(i), body={**CHAT, "model": m}) for i, m in enumerate(models)))
    refused = [o for o in outcomes if isinstance(o, LineError)]
    assert [(e.code, e.line) for e in refused] == [(ErrorCode.MODEL_MISMATCH, 4)]


def test_models_of_the_server() -> None:
    rules = Rules(models=frozenset({"served", "alias"}))
    assert only_error(request(), rules).code is ErrorCode.MODEL_MISMATCH
    for model in ("served", "alias", "served:adapter"):
        [outcome] = parse(request(body={**CHAT, "model": model}), rules=rules)
        assert isinstance(outcome, BatchLine)


def test_the_name_for_any_model_is_taken_everywhere() -> None:
    models = ["default", "m", "default", "default:sql", "m"]
    outcomes = parse(*(request(str(i), body={**CHAT, "model": m}) for i, m in enumerate(models)))
    assert all(isinstance(o, BatchLine) for o in outcomes)
    rules = Rules(models=frozenset({"served"}))
    [outcome] = parse(request(body={**CHAT, "model": "default"}), rules=rules)
    assert isinstance(outcome, BatchLine)


@pytest.mark.parametrize(
    ("models", "shown"),
    [
        ({"/srv/models/m", "default", "org/m"}, "this server has default, org/m."),
        ({"./m", "~/m", "/m"}, "this server has another model; default or no model at all"),
    ],
)
def test_a_client_does_not_learn_the_server_s_paths(models: set[str], shown: str) -> None:
    error = only_error(request(body={**CHAT, "model": "x"}), Rules(models=frozenset(models)))
    assert error.code is ErrorCode.MODEL_MISMATCH
    assert error.message.startswith(f"Line 1: model is 'x', but {shown}")
    assert "/m" not in error.message.replace("org/m", "")


def test_whatever_a_check_raises_is_an_error_of_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check = line_check._check_body

    def fails(url: Endpoint, body: dict[str, Any]) -> None:
        if "odd" in body:
            raise RecursionError("too deep")
        check(url, body)

    monkeypatch.setattr(line_check, "_check_body", fails)
    first, bad, last = parse(request("a"), request("b", body={**CHAT, "odd": 1}), request("c"))
    assert isinstance(first, BatchLine)
    assert isinstance(last, BatchLine)
    assert isinstance(bad, LineError)
    assert bad.message == "Line 2: this line cannot be checked: too deep."


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf \r\n\t"])
def test_empty_file(data: bytes) -> None:
    with pytest.raises(BatchFileError) as caught:
        list(parse_lines(io.BytesIO(data)))
    assert caught.value.error.code is ErrorCode.EMPTY_FILE


def test_limit_of_lines_counts_bad_lines_but_not_blank_ones() -> None:
    rules = Rules(max_lines=2)
    assert len(parse(b"{", b"", request(), b"  ", rules=rules)) == 2
    with pytest.raises(BatchFileError) as caught:
        parse(b"{", request("a"), b"", request("b"), rules=rules)
    assert caught.value.error.code is ErrorCode.TOO_MANY_TASKS
    assert caught.value.error.line == 4


def test_limit_of_bytes() -> None:
    data = json.dumps(request("a")).encode() + b"\n"
    assert len(list(parse_lines(io.BytesIO(data), Rules(max_bytes=len(data))))) == 1
    with pytest.raises(BatchFileError) as caught:
        list(parse_lines(io.BytesIO(data), Rules(max_bytes=len(data) - 1)))
    assert caught.value.error.code is ErrorCode.FILE_TOO_LARGE


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_limit_of_a_line_is_exact(end: bytes) -> None:
    data = json.dumps(request("a")).encode()
    follow = json.dumps(request("b")).encode()
    fits, *rest = parse_lines(
        io.BytesIO(data + end + follow * bool(end)), Rules(max_line_bytes=len(data))
    )
    assert isinstance(fits, BatchLine)
    assert len(rest) == bool(end)
    long, *rest = parse_lines(
        io.BytesIO(data + end + follow * bool(end)), Rules(max_line_bytes=len(data) - 1)
    )
    assert isinstance(long, LineError)
    assert long.code is ErrorCode.LINE_TOO_LONG
    assert len(rest) == bool(end)


def test_a_long_line_is_skipped_whatever_its_length() -> None:
    data = b"x" * 1_000_000 + b"\n" + json.dumps(request("a")).encode()
    long, fits = parse_lines(io.BytesIO(data), Rules(max_line_bytes=500))
    assert isinstance(long, LineError)
    assert isinstance(fits, BatchLine)
    assert (long.line, fits.line) == (1, 2)


def test_broken_gzip_keeps_the_lines_before_the_break() -> None:
    packed = gzip.compress(b"\n".join(json.dumps(request(str(i))).encode() for i in range(9999)))
    stream = gzip.GzipFile(fileobj=io.BytesIO(packed[: len(packed) // 2]))
    outcomes: list[BatchLine | LineError] = []
    with pytest.raises(BatchFileError) as caught:
        outcomes.extend(parse_lines(stream))  # keeps what came before the error
    assert caught.value.error.code is ErrorCode.UNREADABLE_FILE
    assert caught.value.error.line == len(outcomes) + 1
    assert all(isinstance(o, BatchLine) for o in outcomes)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NEARLY_REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": st.text(max_size=2) | JSON_VALUES,
        "method": st.sampled_from(["POST", "GET"]) | JSON_VALUES,
        "url": st.sampled_from([*Endpoint, "/x"]) | JSON_VALUES,
        "body": st.dictionaries(
            st.sampled_from(["model", "messages", "prompt", "input", "n", "stream"]), JSON_VALUES
        )
        | JSON_VALUES,
    },
).map(lambda line: json.dumps(line).encode())
SOUP = st.lists(
    st.binary(max_size=40) | st.sampled_from([b"", b" ", b"\r", b"\xef\xbb\xbf"]) | NEARLY_REQUESTS,
    max_size=12,
).map(b"\n".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # it asserts no time
@given(SOUP)
def test_any_bytes_give_one_outcome_for_each_line_that_is_not_blank(data: bytes) -> None:
    expected = [
        number
        for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
        if line.strip(b" \t\r")
    ]
    outcomes: list[BatchLine | LineError] = []
    with nullcontext() if expected else pytest.raises(BatchFileError):
        outcomes.extend(parse_lines(io.BytesIO(data)))
    assert [o.line for o in outcomes] == expected
    good = [o.custom_id for o in outcomes if isinstance(o, BatchLine)]
    assert len(good) == len(set(good))
