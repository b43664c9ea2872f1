"""A small model of the engine around the step policy, for property tests.

It keeps KV slots the way SGLang does: prompts enter the prefix cache when their prefill is done,
shared prefixes are held once, and when a decode step does not fit, the request with the fewest
output tokens is retracted. True lengths are known to it and hidden from the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sglang.srt.blendserve.policy.paper import PaperPolicy
from sglang.srt.blendserve.policy.select import StepPolicy
from sglang.srt.blendserve.policy.state import EngineState
from sglang.srt.blendserve.pool.pool_request import PoolRequest, shared_tokens
from sglang.srt.blendserve.pool.request_pool import RequestPool


@dataclass
class SmallEngine:
    pool: RequestPool
    policy: StepPolicy | PaperPolicy
    true_length: dict[str, int]
    slots: int
    max_requests: int = 64
    cached: list[np.ndarray] = field(default_factory=list)
    decoding: list[PoolRequest] = field(default_factory=list)
    chunk: PoolRequest | None = None
    chunk_done: int = 0
    chunk_cached: int = 0
    started: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    retractions: int = 0
    computed: int = 0
    steps: int = 0
    most_used: int = 0

    def run(self, limit: int = 200_000) -> None:
        while len(self.pool) or self.decoding or self.chunk is not None:
            self.step()
            self.steps += 1
            assert self.steps < limit, "the engine does not come to an end"

    def used(self) -> int:
        """Slots held by running requests, every shared prefix once."""
        seen: set[tuple[int, ...]] = set()
        total = 0
        for request in self.decoding:
            total += request.generated
            for end in range(1, request.prompt.size + 1):
                seen.add(tuple(request.prompt[:end].tolist()))
        if self.chunk is not None:
            for end in range(1, self.chunk_cached + self.chunk_done + 1):
                seen.add(tuple(self.chunk.prompt[:end].tolist()))
        return total + len(seen)

    def cached_tokens(self, request: PoolRequest) -> int:
        longest = max((shared_tokens(request.prompt, c) for c in self.cached), default=0)
        return min(longest, request.prompt.size + request.generated - 1)

    def step(self) -> None:
        self.pool.plan_if_due(quiet=True)
        left = 0
        if self.chunk is not None:
            left = (
                self.chunk.prompt.size + self.chunk.generated - self.chunk_cached - self.chunk_done
            )
        used = self.used()
        selection = self.policy.select(
            EngineState(
                running=len(self.decoding),
                kv_tokens=sum(r.prompt.size + r.generated for r in self.decoding),
                used_slots=used,
                cached_tokens=self.cached_tokens,
                free_requests=self.max_requests - len(self.decoding) - (self.chunk is not None),
                chunk=self.chunk,
                chunk_tokens=left,
            )
        )
        assert (
            selection.prefill_tokens <= max(self.policy.max_tokens, 1) or self.policy.whole_prompts
        )
        batch = self.decoding
        self.decoding = []
        self.prefill(selection.requests, selection.prefill_tokens)
        for request in batch:
            request.generated += 1
        self.decoding = batch + self.decoding
        self.finish_and_retract()

    def prefill(self, requests: list[PoolRequest], tokens: int) -> None:
        queue = ([self.chunk] if self.chunk is not None else []) + requests
        done = self.chunk_done if self.chunk is not None else 0
        cached = self.chunk_cached if self.chunk is not None else None
        self.chunk = None
        # As in SGLang, a batch's prefixes are matched before any of it is computed.
        matched = {request.rid: self.cached_tokens(request) for request in queue}
        for place, request in enumerate(queue):
            if cached is None:
                self.started.append(request.rid)
                cached = matched[request.rid]
            need = request.prompt.size + request.generated - cached - done
            now = need if self.policy.whole_prompts else min(need, tokens)
            tokens -= now
            self.computed += now
            if now < need:
                self.chunk, self.chunk_done, self.chunk_cached = request, done + now, cached
                for refused in reversed(queue[place + 1 :]):
                    self.pool.put_back(refused)
                return
            self.cached.append(request.prompt)
            request.generated += 1
            self.decoding.append(request)
            done, cached = 0, None

    def finish_and_retract(self) -> None:
        for request in [*self.decoding]:
            if request.generated >= self.true_length[request.rid]:
                self.decoding.remove(request)
                self.finished.append(request.rid)
                self.pool.finish(request, request.generated)
        while self.used() > self.slots and len(self.decoding) > 1:
            victim = min(self.decoding, key=lambda r: r.generated)
            self.decoding.remove(victim)
            self.retractions += 1
            self.pool.put_back(victim)
        self.most_used = max(self.most_used, self.used())
