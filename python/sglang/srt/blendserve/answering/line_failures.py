"""What a line comes to that the engine has not answered: its error."""

from __future__ import annotations

from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.batch_file.types import BatchLine, ErrorCode, LineError


def engine_died(line: BatchLine) -> LineError:
    """Return the error of a line of which the engine has died."""
    return LineError(
        code=ErrorCode.ENGINE_DIED,
        message=f"Line {line.line}: the engine died while this request was in it, the last time "
        "alone, so it is not sent again. Send the line with other parameters or a shorter prompt, "
        "or leave it out; SGLang's log says what the engine died of.",
        line=line.line,
        custom_id=line.custom_id,
    )


def failed(line: BatchLine, rid: str, error: Exception) -> Response:
    """Return the response of a line whose execution raised ``error``."""
    reason = ascii(str(error))[1:-1]  # a text that is certain to be written
    body = {
        "message": f"Line {line.line}: an error while it was executed: {reason}",
        "type": "server_error",
        "param": None,
        "code": None,
        "line": line.line,
    }
    return Response(status_code=500, request_id=rid, body={"error": body})
