"""What answering needs of an engine, whoever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sglang.srt.blendserve.answering.observer import Observation
from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.pool.pool_request import Tokens


class Answer(NamedTuple):
    """What a line came to: the response for its result line, and what it cost."""

    response: Response
    observation: Observation


class EngineLost(Exception):
    """One of several engines has died with a line in it; the others go on.

    Attributes:
        lines: how many lines were in it; 0: it was gone before the line was in it.
    """

    def __init__(self, lines: int) -> None:
        super().__init__(f"an engine has died with {lines} lines in it")
        self.lines = lines


class Engine(Protocol):
    """Answers batch lines. All of it runs on one event loop."""

    async def execute(
        self,
        line: BatchLine,
        rid: str,
        prompts: Sequence[Tokens] | None = None,
        engine: int | None = None,
    ) -> Answer:
        """Return the answer to a line; ``observation.aborted`` is set if it was given up.

        Args:
            line: a valid line.
            rid: the request id, from `job_ids.make_rid`, by which the scheduler knows the job.
            prompts: the token ids of the line's prompts, in their order, int32 of shape (tokens,)
                each, which are not made again then; None: not known.
            engine: which of several engines it is for, if that one is there; None: any.

        Raises:
            EngineLost: it was in an engine that has died, of several.
        """
        ...

    def abort(self, job: str) -> None:
        """Give up all requests of the job of that name."""
        ...
