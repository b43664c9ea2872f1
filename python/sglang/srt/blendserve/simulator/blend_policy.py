"""BlendServe's planner behind the fast step model: the code that SGLang's scheduler runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from sglang.srt.blendserve.policy.named import AnyStepPolicy
from sglang.srt.blendserve.policy.state import EngineState
from sglang.srt.blendserve.pool.pool_request import PoolRequest, Tokens
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.fast import MAX_RUNNING, FastEngine
from sglang.srt.blendserve.simulator.workload import Ints, Workload


class BlendPolicy:
    """Feeds a `FastEngine` from a `RequestPool`, as the runtime feeds SGLang's scheduler."""

    quiet = True
    """Whether all requests are there from the start."""

    def __init__(
        self,
        workload: Workload,
        prompts: list[Tokens],
        policy: AnyStepPolicy,
        told: Ints | None = None,
        *,
        known_ahead: float = 1.0,
    ) -> None:
        """``told``: (n,) output lengths that the policy is told and takes for exact; without them
        it sees ``max_tokens`` alone. ``known_ahead``: see `BlendOptions`."""
        self.policy, self.pool = policy, policy.pool
        self.requests = self.make_requests(workload, prompts, told)
        self._coming = arrivals(self.requests, known_ahead, self.pool)

    @staticmethod
    def make_requests(
        workload: Workload, prompts: list[Tokens], told: Ints | None
    ) -> list[PoolRequest]:
        """Return the requests of a workload as a pool has them, each with its number for an id."""
        limits = (workload.max_tokens if told is None else told).tolist()
        return [
            PoolRequest(str(index), prompt, limits[index], told is not None)
            for index, prompt in enumerate(prompts)
        ]

    def choose(self, engine: FastEngine) -> int:
        """Start what the step policy selects."""
        step, requests = engine.step_number, self.requests
        for index, born in engine.running.items():
            requests[index].generated = step - born
        self.pool.plan_if_due(quiet=self.quiet)
        chunk = requests[engine.starting[0]] if engine.starting else None
        chunk_tokens = 0 if chunk is None else engine.todo[int(chunk.rid)]
        selection = self.policy.select(
            EngineState(
                running=len(engine.running),
                kv_tokens=engine.context + len(engine.running),
                # The engine takes the slots of a prompt at once, SGLang as it is computed.
                used_slots=engine.cache.used - chunk_tokens,
                free_requests=MAX_RUNNING - len(engine.running),
                cached_tokens=lambda request: engine.cache.hit(int(request.rid)),
                chunk=chunk,
                chunk_tokens=chunk_tokens,
            )
        )
        for place, request in enumerate(selection.requests):
            if not engine.start(int(request.rid)):
                for refused in reversed(selection.requests[place:]):
                    self.pool.put_back(refused)
                break
        return selection.prefill_tokens

    def finished(self, request: int, output_tokens: int) -> None:
        """Learn the length of a request that has ended."""
        self.pool.finish(self.requests[request], output_tokens)
        for late in islice(self._coming, 1):
            self.pool.add(late)

    def retracted(self, request: int, generated: int) -> None:
        """Put the request back: it keeps its turn and what it has generated."""
        self.requests[request].generated = generated
        self.pool.put_back(self.requests[request])


def arrivals(
    requests: list[PoolRequest], known_ahead: float, pool: RequestPool
) -> Iterator[PoolRequest]:
    """Put that part of ``requests`` into ``pool``; return the others, which come later."""
    coming = iter(requests)
    for request in islice(coming, math.ceil(known_ahead * len(requests))):
        pool.add(request)
    return coming
