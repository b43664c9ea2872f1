"""The result of one input line, as the core that answers lines hands it to a log."""

from __future__ import annotations

from typing import NamedTuple

from sglang.srt.blendserve.store.tally import Tally


class LineResult(NamedTuple):
    """The result of one input line.

    Attributes:
        line: the line's number in the input, from 1.
        tally: one request, completed or failed, and its tokens.
        data: the result as one line of JSON, newline included.
    """

    line: int
    tally: Tally
    data: bytes

    @property
    def succeeded(self) -> bool:
        """Whether the result belongs in the output file, not the error file."""
        return self.tally.completed == 1
