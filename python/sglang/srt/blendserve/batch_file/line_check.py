"""Check one line of a batch file without knowing the others.

A bad line is a value, not an exception, so it never keeps its neighbours from being served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from sglang.srt.blendserve.batch_file.lines import RawLine
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint, ErrorCode, LineError

MAX_LINE_BYTES = 32 << 20
"""Default limit of one line (bytes): what one request may hold in memory."""

ANY_MODEL = "default"
"""The model name that stands for whichever model is loaded, in SGLang's own API too."""

MAX_CHOICES = 128
"""Most answers (``n``) to one request, as OpenAI has it. Each is a sequence of its own in the
engine, so a huge number in one line would starve all others."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a batch file must keep to.

    Attributes:
        endpoint: the url that every line must name; None: each line may name any `Endpoint`.
        models: model names that a line may ask for; None: whichever the first valid line that
            names a model asks for, so that one file is for one model. ``base:adapter`` (a LoRA
            adapter) counts as ``base``. A line without ``model``, or with `ANY_MODEL`, is
            answered by the loaded model.
        max_lines: most requests in the file, None: no limit.
        max_bytes: most bytes in the file after decompression, None: no limit.
        max_line_bytes: most bytes in one line.
    """

    endpoint: Endpoint | None = None
    models: frozenset[str] | None = None
    max_lines: int | None = None
    max_bytes: int | None = None
    max_line_bytes: int = MAX_LINE_BYTES


class Refused(Exception):
    """A line is refused; turned into a `LineError` where its number is known."""

    def __init__(self, code: ErrorCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param
        self.custom_id: str | None = None

    def at(self, line: int) -> LineError:
        """Return the error of the line of that number."""
        return LineError(
            code=self.code,
            message=f"Line {line}: {self.message}",
            param=self.param,
            line=line,
            custom_id=self.custom_id,
        )


class CheckedLine(NamedTuple):
    """A line by itself: what only the lines before it can show is not checked.

    Attributes:
        line: the request, or why it is none.
        custom_id: the line's, None where it has no usable one. No earlier line may have it.
        model: which model it names, None where any will do; see `Rules.models`.
    """

    line: BatchLine | LineError
    custom_id: str | None
    model: str | None


def check_line(raw: RawLine, rules: Rules) -> CheckedLine:
    """Check one line without knowing the others. Never raises: whatever a line holds is its own."""
    custom_id: str | None = None
    try:
        if raw.data is None:
            raise Refused(
                ErrorCode.LINE_TOO_LONG,
                f"this line is longer than {rules.max_line_bytes} bytes.",
            )
        request = _parse_object(raw.data)
        given = _require(request, "custom_id", str, "a string")
        if not given:
            raise Refused(
                ErrorCode.INVALID_VALUE, "custom_id is empty; give each line its own.", "custom_id"
            )
        given.encode()  # what no file can hold is not usable
        custom_id = given
        line, model = _check_request(raw.number, custom_id, request, rules)
        return CheckedLine(line, custom_id, model)
    except Refused as refused:
        refused.custom_id = custom_id
        return CheckedLine(refused.at(raw.number), custom_id, None)
    except Exception as error:
        reason = f"this line cannot be checked: {error or type(error).__name__}."
        unchecked = Refused(ErrorCode.INVALID_VALUE, reason)
        return CheckedLine(unchecked.at(raw.number), custom_id, None)


def _check_request(
    number: int, custom_id: str, request: dict[str, Any], rules: Rules
) -> tuple[BatchLine, str | None]:
    method = _require(request, "method", str, "the string POST")
    if method != "POST":
        raise Refused(
            ErrorCode.UNSUPPORTED_METHOD,
            f"method is {show(method)}; only POST is supported.",
            "method",
        )
    url = _check_url(_require(request, "url", str, "a string"), rules)
    body = _require(request, "body", dict, "an object")
    _check_body(url, body)
    model = _check_model(body, rules)
    line = BatchLine(line=number, custom_id=custom_id, method=method, url=url, body=body)
    return line, model


def _check_url(url: str, rules: Rules) -> Endpoint:
    if url not in tuple(Endpoint):
        raise Refused(
            ErrorCode.UNSUPPORTED_URL,
            f"url is {show(url)}; supported are {', '.join(Endpoint)}.",
            "url",
        )
    if rules.endpoint is not None and url != rules.endpoint:
        raise Refused(
            ErrorCode.URL_MISMATCH,
            f"url is {url}, but this batch is for {rules.endpoint}.",
            "url",
        )
    return Endpoint(url)


def _check_model(body: dict[str, Any], rules: Rules) -> str | None:
    """Return the model that a body names, None where any will do."""
    model = body.get("model")
    if model is None:
        return None
    if not isinstance(model, str):
        raise _wrong_type("body.model", "a string", model)
    base = model.partition(":")[0].strip()
    if base == ANY_MODEL:
        return None
    if rules.models is None:
        return model
    if model in rules.models or base in rules.models:
        return model
    raise Refused(
        ErrorCode.MODEL_MISMATCH,
        f"model is {show(model)}, but this server has {_names_toshow(rules.models)}.",
        "body.model",
    )


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Refused(
            ErrorCode.INVALID_JSON_LINE, f"this line is not parseable as valid JSON: {error}"
        ) from error
    if not isinstance(request, dict):
        raise Refused(
            ErrorCode.INVALID_JSON_LINE,
            f"this line is not a JSON object but {type_name(request)}.",
        )
    return request


_INPUTS: dict[Endpoint, tuple[str, type | tuple[type, ...], str]] = {
    Endpoint.CHAT: ("messages", list, "an array of messages"),
    Endpoint.COMPLETIONS: ("prompt", (str, list), "a string or an array"),
    Endpoint.EMBEDDINGS: ("input", (str, list), "a string or an array"),
    Endpoint.RESPONSES: ("input", (str, list), "a string or an array of items"),
    Endpoint.SCORE: ("items", (str, list), "a string or an array"),
    Endpoint.RERANK: ("documents", list, "an array of documents"),
}


def _check_body(url: Endpoint, body: dict[str, Any]) -> None:
    """Check what must hold before a request is worth sending to its endpoint."""
    name, kinds, expected = _INPUTS[url]
    _require(body, name, kinds, expected, "body.")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _wrong_type("body.stream", "a boolean", stream)
    if stream:
        raise Refused(
            ErrorCode.STREAMING_UNSUPPORTED,
            "a batch cannot stream; remove stream or set it to false.",
            "body.stream",
        )
    choices = body.get("n")
    if choices is None:
        return
    if not isinstance(choices, int) or isinstance(choices, bool):
        raise _wrong_type("body.n", "an integer", choices)
    if not 1 <= choices <= MAX_CHOICES:
        raise Refused(ErrorCode.INVALID_VALUE, f"n is {choices}; use 1 to {MAX_CHOICES}.", "body.n")


def _require(
    holder: dict[str, Any],
    name: str,
    kinds: type | tuple[type, ...],
    expected: str,
    prefix: str = "",
) -> Any:
    value = holder.get(name)
    if value is None:
        raise Refused(
            ErrorCode.MISSING_REQUIRED_PARAMETER,
            f"{prefix}{name} is missing; it must be {expected}.",
            prefix + name,
        )
    if not isinstance(value, kinds):
        raise _wrong_type(prefix + name, expected, value)
    return value


def _wrong_type(param: str, expected: str, value: object) -> Refused:
    return Refused(
        ErrorCode.INVALID_TYPE, f"{param} must be {expected}, not {type_name(value)}.", param
    )


def _names_toshow(models: frozenset[str]) -> str:
    """Return the model names that a client may see: a path on the server's disk is none."""
    shown = sorted(name for name in models if not name.startswith(("/", "~", ".", "\\")))
    return ", ".join(shown) or f"another model; {ANY_MODEL} or no model at all asks for it"


_TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def type_name(value: object) -> str:
    """Return what JSON calls the type of a value, with its article."""
    return _TYPE_NAMES[type(value)]


def show(text: str, limit: int = 80) -> str:
    """Return a text in quotes, cut off after ``limit`` characters, for a message."""
    return repr(text if len(text) <= limit else text[:limit] + "...")
