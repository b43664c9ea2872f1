"""Requests on their way into SGLang's queue, for the simulation that runs its scheduler."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from sglang.srt.blendserve.simulator.longest_jobs import LongestJobs

END_TOKEN = 2
"""The token with which the simulated device ends an answer."""


class Arrivals:
    """The requests that have not been handed to the scheduler yet, in their order of arrival."""

    def __init__(
        self,
        scheduler: Any,
        rids: Sequence[str],
        prompts: Sequence[Any],
        max_tokens: Sequence[int],
        most_waiting: int,
        jobs: LongestJobs | None = None,
        told: Sequence[int] | None = None,
    ) -> None:
        """``most_waiting``: how many wait in SGLang's queue at once; 0: all of them.
        ``jobs``: takes them in its order, which depends on the lengths of what has ended.
        ``told``: output lengths that our policy is told and takes for exact."""
        self._scheduler = scheduler
        self._jobs = jobs
        self._place = {rid: place for place, rid in enumerate(rids)} if jobs else {}
        order = range(len(rids)) if jobs is None else jobs
        self._left = ((rids[i], prompts[i], max_tokens[i]) for i in order)
        self._told = dict(zip(rids, told, strict=True)) if told is not None else {}
        self._most = most_waiting or len(rids)
        self._all = len(rids)
        self._fed = False
        self._retracted: deque[Any] = deque()

    def retracted(self, req: Any) -> bool:
        """Keep a retracted request for the end of the queue, behind all that have not arrived.

        False if it may join the scheduler's own queue at once, whose end is that end.
        """
        if self._most >= self._all or self._jobs is not None:
            return False
        self._retracted.append(req)
        return True

    def ended(self, req: Any) -> None:
        """Learn that ``req`` has ended: its length counts in the order of jobs."""
        if self._jobs is not None:
            self._jobs.ended(self._place[req.rid], len(req.output_ids))

    def hand_over(self, rid: str, prompt: Any, limit: int) -> None:
        """Have the scheduler take a request, as from its receiver."""
        self._scheduler.process_input_requests([_arrival(rid, prompt, limit)])

    def feed(self) -> None:
        """Hand over what is due, as the scheduler's receiver would."""
        waiting = len(self._scheduler.waiting_queue)
        if self._fed and not waiting:
            self._most = min(2 * self._most, self._all)
        self._fed = True
        for rid, prompt, limit in islice(self._left, max(self._most - waiting, 0)):
            self.hand_over(rid, prompt, int(limit))
            if rid in self._told:
                request = self._scheduler.pool.table.by_rid[rid]
                request.max_tokens, request.known_length = self._told[rid], True
            waiting += 1
        while self._retracted and waiting < self._most:
            self._scheduler.waiting_queue.append(self._retracted.popleft())
            waiting += 1


def _arrival(rid: str, prompt: Any, limit: int) -> Any:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    parameters = SamplingParams(max_new_tokens=limit, temperature=0, stop_token_ids=[END_TOKEN])
    parameters.normalize(None)
    return TokenizedGenerateReqInput(
        rid=rid,
        input_text="",
        input_ids=array("q", prompt.tolist()),
        input_embeds=None,
        token_type_ids=None,
        mm_inputs=None,
        sampling_params=parameters,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
    )


def watch_retractions(scheduler: Any, arrivals: Arrivals) -> list[str]:
    """Note from now on which requests of ``scheduler`` are retracted, by id, in the list returned.

    ``arrivals`` keeps the retracted requests in their place.
    """
    retracted: list[str] = []
    original = scheduler._add_request_to_queue

    def noting(req: Any, is_retracted: bool = False) -> None:
        if is_retracted:
            retracted.append(req.rid)
            original(req, is_retracted)
            if scheduler.waiting_queue[-1:] == [req] and arrivals.retracted(req):
                scheduler.waiting_queue.pop()
            return
        original(req, is_retracted)

    scheduler._add_request_to_queue = noting
    return retracted
