"""Where results go: what `AnsweringLoop` needs of the files of a run or a batch's journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sglang.srt.blendserve.batch_file.results import refusal
from sglang.srt.blendserve.batch_file.types import LineError
from sglang.srt.blendserve.store.line_result import LineResult
from sglang.srt.blendserve.store.tally import Tally


class ResultLog(Protocol):
    """The results of one input, at most one for each of its lines."""

    def __contains__(self, line: int) -> bool:
        """Whether the input line of that number (from 1) has a result."""
        ...

    def append(self, results: Sequence[LineResult]) -> None:
        """Take a group of results. Called on the event loop, so it takes microseconds.

        Raises:
            Exception: the log can take no more for good, and the job ends.
        """
        ...

    def sync(self) -> None:
        """Have all that was appended survive a crash of the machine. Called off the event loop.

        Raises:
            OSError: the disk is full or failing. Nothing that was appended is lost; call it again.
            Exception: the log can take no more for good, and the job ends.
        """
        ...


def refused(job: str, error: LineError) -> LineResult:
    """Return the result of a line that never reaches the engine.

    Args:
        job: the job's name; the result's id follows from it and the line's number.
        error: why, with the line's number.
    """
    assert error.line is not None
    return LineResult(error.line, Tally(failed=1), refusal(job, error).to_json())
