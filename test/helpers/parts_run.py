"""A run that answers by itself, for tests that end it at any moment.

    python test/helpers/parts_run.py OUTPUT LINES SECONDS [--resume] [--work-dir FOLDER]

All is the real thing (result files, parts, what is put in an object store) but for the engine: each
line is answered with its own number, every seventh line fails.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.batch_file.results import Response, answer
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint
from sglang.srt.blendserve.run.outputs import delivery_of
from sglang.srt.blendserve.run.run_log import Identity, RunLog
from sglang.srt.blendserve.store.line_result import LineResult
from sglang.srt.blendserve.store.tally import Tally

JOB = "0" * 32


def main() -> None:
    """Answer the lines that have no result yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("lines", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--backwards", action="store_true")
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--failing", type=int, default=7)
    args = parser.parse_args()
    delivery = delivery_of(args.output, None, args.work_dir, 50, retry=False)
    delivery.prepare(again=args.resume, overwrite=args.overwrite)
    with RunLog(
        delivery.output, delivery.errors, resume=args.resume, overwrite=args.overwrite
    ) as log:
        lines = [line_of(number) for number in range(1, args.lines + 1)]
        todo = [line for line in lines if not log.find(line)]
        log.begin(Identity(JOB, "digest", "model"))
        with delivery.running(log, overwrite=args.overwrite):
            for line in reversed(todo) if args.backwards else todo:
                log.append([result_of(line, args.failing)])
                time.sleep(args.seconds / args.lines)
    delivery.finish(failed=log.failed)


def line_of(number: int) -> BatchLine:
    """Return an input line."""
    return BatchLine(
        custom_id=f"request-{number}",
        url=Endpoint.COMPLETIONS,
        method="POST",
        body={"prompt": "A"},
        line=number,
    )


def result_of(line: BatchLine, failing: int = 0) -> LineResult:
    """Return its result; every line of which ``failing`` is a divisor fails."""
    body: dict[str, Any] = {"choices": [{"text": str(line.line), "finish_reason": "stop"}]}
    fails = failing and line.line % failing == 0
    if fails:
        body = {"error": {"message": "Not now.", "code": "engine_error"}}
    response = Response(status_code=500 if fails else 200, request_id="r", body=body)
    data = answer(JOB, line.line, line.custom_id, response).to_json()
    tally = Tally(failed=1) if fails else Tally(completed=1)
    return LineResult(line.line, tally, data)


if __name__ == "__main__":
    main()
