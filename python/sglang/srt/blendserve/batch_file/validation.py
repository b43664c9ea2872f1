"""Validate a batch file line by line, in constant memory.

`parse_lines` is the one reader of batch files: the ``run`` command and the HTTP service both use
it. A bad line is a value, not an exception, so it never keeps its neighbours from being served.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from sglang.srt.blendserve.batch_file.line_check import (
    CheckedLine,
    Refused,
    Rules,
    check_line,
    show,
)
from sglang.srt.blendserve.batch_file.lines import ByteStream, RawLine, read_lines
from sglang.srt.blendserve.batch_file.types import (
    BatchFileError,
    BatchLine,
    ErrorCode,
    LineError,
)

__all__ = [
    "MAX_BYTES",
    "MAX_LINES",
    "Rules",
    "base_of",
    "custom_id_digest",
    "duplicate",
    "other_model",
    "parse_lines",
]

MAX_LINES = 50_000
"""OpenAI's limit of requests in one batch; the HTTP service's default."""

MAX_BYTES = 200 * 1000 * 1000
"""OpenAI's limit of a batch file's size (bytes); the HTTP service's default."""


def parse_lines(stream: ByteStream, rules: Rules | None = None) -> Iterator[BatchLine | LineError]:
    """Yield exactly one `BatchLine` or `LineError` for each line of ``stream`` that is not blank.

    Blank lines, CRLF, a byte order mark and a missing last newline are accepted. Memory: one
    line, and about 120 bytes for each line seen (to find a custom_id that is used twice).

    Args:
        stream: the file, open for reading bytes; read once, front to back, not closed.
        rules: see `Rules`; None: its defaults.

    Raises:
        BatchFileError: empty_file, too_many_tasks, file_too_large or unreadable_file. Lines
            yielded before stay valid.
    """
    rules = rules or Rules()
    earlier = _Earlier(rules)
    count = 0
    raw = read_lines(stream, max_line_bytes=rules.max_line_bytes, max_bytes=rules.max_bytes)
    for number, data in raw:
        count += 1
        if rules.max_lines is not None and count > rules.max_lines:
            raise BatchFileError(
                LineError(
                    code=ErrorCode.TOO_MANY_TASKS,
                    message=f"The file has more than {rules.max_lines} requests. Split it.",
                    line=number,
                )
            )
        yield earlier.check(check_line(RawLine(number, data), rules), number)
    if not count:
        raise BatchFileError(
            LineError(
                code=ErrorCode.EMPTY_FILE,
                message="The file has no request: every line is blank. Write one JSON object "
                "with custom_id, method, url and body a line.",
            )
        )


def duplicate(line: int, custom_id: str) -> LineError:
    """Return the error of a line whose custom_id an earlier line has."""
    refused = Refused(
        ErrorCode.DUPLICATE_CUSTOM_ID,
        f"custom_id {show(custom_id)} is used by an earlier line; it must be unique.",
        "custom_id",
    )
    refused.custom_id = custom_id
    return refused.at(line)


def other_model(line: int, custom_id: str | None, model: str, first: str) -> LineError:
    """Return the error of a line that names another model than the first that names one."""
    refused = Refused(
        ErrorCode.MODEL_MISMATCH,
        f"model is {show(model)}, but earlier lines ask for {show(first)}; one file is for one "
        "model.",
        "body.model",
    )
    refused.custom_id = custom_id
    return refused.at(line)


def base_of(model: str) -> str:
    """Return the model that a name asks for, without its adapter."""
    return model.partition(":")[0].strip()


def custom_id_digest(custom_id: str) -> bytes:
    """Return what stands for a custom_id where many are compared: 16 bytes."""
    return blake2b(custom_id.encode(), digest_size=16).digest()


@dataclass(slots=True)
class _Earlier:
    """What must be remembered from line to line, in the order of the file."""

    rules: Rules
    seen: set[bytes] = field(default_factory=set)
    first_model: str | None = None

    def check(self, checked: CheckedLine, number: int) -> BatchLine | LineError:
        """Return the line, or the error that the lines before it make of it."""
        line, custom_id, model = checked
        if custom_id is not None:
            digest = custom_id_digest(custom_id)
            if digest in self.seen:
                return duplicate(number, custom_id)
            self.seen.add(digest)
        if model is None or self.rules.models is not None or isinstance(line, LineError):
            return line
        self.first_model = self.first_model or base_of(model)
        if base_of(model) == self.first_model:
            return line
        return other_model(number, custom_id, model, self.first_model)
