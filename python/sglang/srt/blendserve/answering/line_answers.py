"""The engine's answer to one line, after as many tries as it takes, and how it is written down."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sglang.srt.blendserve.answering.engine import Engine, EngineLost
from sglang.srt.blendserve.answering.job import Job
from sglang.srt.blendserve.answering.line_failures import failed
from sglang.srt.blendserve.answering.line_source import SizedLine
from sglang.srt.blendserve.answering.observer import Observation
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.batch_file.results import Response, answer
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.pool.pool_request import Tokens

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
"""Time before the second try of a request that was aborted or not taken; twice it before the third:
a queue that was full has room again."""

_TRIES = 3


class LineAnswers:
    """Has the lines of one job answered."""

    def __init__(self, job: Job, engine: Engine, stop: Stop) -> None:
        """``stop`` of the job: nothing is tried again after it."""
        self._job, self._engine, self._stop = job, engine, stop
        self._said_unknown = False

    async def answer(
        self, line: BatchLine, rid: str, sized: SizedLine
    ) -> tuple[Response, Observation | None]:
        """Return the engine's answer to a line, after at most three tries.

        Raises:
            EngineLost: one of several engines has died with the line in it.
        """
        prompts = self._prompts(sized)
        for attempt in range(1, _TRIES + 1):
            try:
                found = await self._engine.execute(line, rid, prompts, sized.engine)
            except EngineLost:
                raise
            except Exception as error:  # of any kind: it is the result of this line alone
                logger.exception("%s: line %d failed", self._job.label, line.line)
                return failed(line, rid, error), None
            aborted = found.observation.aborted
            if aborted is None or self._stop.reason is not None:
                break
            logger.warning(
                "%s: line %d was aborted (%s), try %d of %d",
                self._job.label, line.line, aborted, attempt, _TRIES,
            )  # fmt: skip
            if attempt < _TRIES and await self._stop.requested_within(attempt * PAUSE_SECONDS):
                break
        return found

    def written(self, line: BatchLine, rid: str, response: Response) -> tuple[Response, bytes]:
        """Return a line's result as it is written, and the response that it holds."""
        name = self._job.name
        try:
            return response, answer(name, line.line, line.custom_id, response).to_json()
        except Exception as error:  # half a surrogate pair in what the model wrote, for one
            logger.exception("%s: line %d cannot be written", self._job.label, line.line)
            response = failed(line, rid, error)
            return response, answer(name, line.line, line.custom_id, response).to_json()

    def _prompts(self, sized: SizedLine) -> Sequence[Tokens] | None:
        """Return the token ids of a line's prompts, None if they are not known."""
        try:
            return None if sized.prompts is None else sized.prompts()
        except Exception:  # of any kind, in the store: the engine can make the ids itself
            if not self._said_unknown:
                logger.exception("%s: token ids that were made are made again", self._job.label)
            self._said_unknown = True
            return None
