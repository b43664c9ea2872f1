"""Make a batch's output and error files from its journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sglang.srt.blendserve.answering.line_source import read_input
from sglang.srt.blendserve.batch_file.results import refusal
from sglang.srt.blendserve.batch_file.types import BatchFileError, BatchLine, ErrorCode, LineError
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.store.content import ContentWriter
from sglang.srt.blendserve.store.journal import ResultJournal
from sglang.srt.blendserve.store.objects import Outcome
from sglang.srt.blendserve.store.tally import Tally

_UNANSWERED: dict[Outcome, tuple[ErrorCode, str]] = {
    "expired": (
        ErrorCode.BATCH_EXPIRED,
        "This request could not be executed before the completion window expired.",
    ),
    "cancelled": (
        ErrorCode.BATCH_CANCELLED,
        "The batch was cancelled before this request was executed.",
    ),
    "failed": (
        ErrorCode.UNREADABLE_FILE,
        "The batch failed before this request was executed.",
    ),
}


class ResultFiles(NamedTuple):
    """What a batch came to: requests in all, and the sum over their result lines."""

    total: int
    tally: Tally


def write_results(
    journal: ResultJournal,
    input_path: Path,
    rules: Rules,
    job: str,
    total: int,
    outcome: Outcome,
    output: ContentWriter,
    errors: ContentWriter,
) -> ResultFiles:
    """Write every result of the journal into ``output`` or ``errors``, in the input's order.

    When requests have no result, because the batch ends early, each gets an error line with the
    reason, so that every line of the input has exactly one line in one of the files. Neither
    file is committed here.

    Args:
        total: requests in the input, 0 when they have not been counted.
        outcome: the state that the batch ends in.

    Raises:
        OSError: the disk is full, or the journal is damaged.
    """
    if outcome == "failed" and not total:
        return ResultFiles(0, Tally())  # nobody knows what requests there were
    if total and len(journal) == total:
        lines: Iterator[int | BatchLine | LineError] = journal.lines()
    else:
        lines = _all_lines(journal, input_path, rules)
    counted, tally = 0, journal.tally
    for line in lines:
        counted += 1
        if isinstance(line, int):
            entry = journal.read(line)
            (output if entry.succeeded else errors).write(entry.data)
        else:
            errors.write(refusal(job, _why(line, outcome)).to_json())
            tally = tally.plus(Tally(failed=1))
    missing = max(total - counted, 0)  # the input was cut short from outside
    return ResultFiles(counted + missing, tally.plus(Tally(failed=missing)))


def _all_lines(
    journal: ResultJournal, input_path: Path, rules: Rules
) -> Iterator[int | BatchLine | LineError]:
    """Yield the number of each line that has a result, and the other lines, in order."""
    last = 0
    try:
        for line in read_input(input_path, rules):
            assert line.line is not None
            last = line.line
            yield last if last in journal else line
    except (BatchFileError, FileNotFoundError):
        yield from (number for number in journal.lines() if number > last)


def _why(line: BatchLine | LineError, outcome: Outcome) -> LineError:
    if isinstance(line, LineError):
        return line
    code, message = _UNANSWERED[outcome]
    return LineError(code=code, message=message, line=line.line, custom_id=line.custom_id)
