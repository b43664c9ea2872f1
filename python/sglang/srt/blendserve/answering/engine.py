"""What answering needs of an engine, whoever runs it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from sglang.srt.blendserve.answering.observer import Observation
from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.batch_file.types import BatchLine


class Answer(NamedTuple):
    """What a line came to: the response for its result line, and what it cost."""

    response: Response
    observation: Observation


class Engine(Protocol):
    """Answers batch lines. All of it runs on one event loop."""

    async def execute(self, line: BatchLine, rid: str) -> Answer:
        """Return the answer to a line; ``observation.aborted`` is set if it was given up.

        Args:
            line: a valid line.
            rid: the request id, from `job_ids.make_rid`, by which the scheduler knows the job.
        """
        ...

    def abort(self, job: str) -> None:
        """Give up all requests of the job of that name."""
        ...
