"""The fast step model: continuous batching with chunked prefill, without SGLang.

Each step decodes one token of every running request and computes prompt tokens of those that a
policy admits; prefill and decode share the step. A request that ends its prompt has its first
output token with that step and decodes from the next. Memory is counted in KV slots; when a decode
step finds none, the requests with the fewest output tokens are retracted, as in SGLang.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.simulator.prefix_cache import PrefixCacheModel
from sglang.srt.blendserve.simulator.step_cost import StepModel, StepTime, StepWork
from sglang.srt.blendserve.simulator.workload import Workload

MAX_RUNNING = 4096
"""Requests that may decode at once (SGLang's limit for large caches)."""


class FastPolicy(Protocol):
    """Chooses what joins a step."""

    def choose(self, engine: FastEngine) -> int:
        """Start requests with ``engine.start`` and return how many prompt tokens to compute."""
        ...

    def finished(self, request: int, output_tokens: int) -> None:
        """Learn that ``request`` has ended after ``output_tokens`` tokens."""
        ...

    def retracted(self, request: int, generated: int) -> None:
        """Learn that ``request`` has lost its slots after ``generated`` tokens and waits again."""
        ...


@dataclass(slots=True)
class Totals:
    """What a run adds up to: seconds, steps and tokens."""

    seconds: float = 0.0
    compute: float = 0.0
    memory: float = 0.0
    steps: int = 0
    prefilled: int = 0
    """Prompt tokens computed, without those of requests that start again after a retraction."""
    retractions: int = 0
    kv_tokens: int = 0
    """Sum over steps of the KV tokens read."""


class FastEngine:
    """One engine and its requests; `run` plays them all."""

    def __init__(
        self,
        workload: Workload,
        tree: PrefixTree,
        cost: StepModel,
        kv_slots: int,
        *,
        plan_aware_eviction: bool = False,
        like: FastEngine | None = None,
    ) -> None:
        """``like``: another engine for the same workload and tree, for which this one saves memory;
        each of them starts some of the requests."""
        self.cost = cost
        self.cache: PrefixCacheModel = PrefixCacheModel(
            tree,
            kv_slots,
            plan_aware=plan_aware_eviction,
            like=None if like is None else like.cache,
        )
        self.prompt: list[int] = workload.prompt_tokens.tolist() if like is None else like.prompt
        self._output: list[int] = workload.output_tokens.tolist() if like is None else like._output
        self.size = workload.size
        self.left = workload.size
        """Requests that have not ended."""
        self.step_number = 0
        self.context = 0
        """KV tokens of the running requests."""
        self.running: dict[int, int] = {}
        """Requests that decode, and the step number at which they had made no token yet."""
        self.starting: list[int] = []
        """Requests whose prompts are being computed, the partly computed one first."""
        self.todo: dict[int, int] = {}
        """Prompt tokens that each of them still computes."""
        self._kept: dict[int, int] = {}
        self._hit: dict[int, int] = {}
        self._own: dict[int, int] = {}
        self._joined: dict[int, int] = {}
        self._ends: dict[int, list[int]] = {}
        self.totals = Totals()

    def generated(self, request: int) -> int:
        """Output tokens of a request so far."""
        born = self.running.get(request)
        return self._kept.get(request, 0) if born is None else self.step_number - born

    def start(self, request: int) -> bool:
        """Begin a request's prompt; False if there are no slots for it."""
        hit = self.cache.lock(request)
        done = self._kept.get(request, 0)
        tokens = max(self.prompt[request] + done - hit, 1)
        if not self.cache.take(tokens):
            self.cache.unlock(request, hit)
            return False
        self._hit[request], self._own[request] = hit, tokens
        self.todo[request] = tokens
        self.starting.append(request)
        if not done:
            self.totals.prefilled += tokens
        return True

    def run(
        self,
        policy: FastPolicy,
        *,
        on_step: Callable[[FastEngine, StepWork, StepTime], None] | None = None,
    ) -> Totals:
        """Play all requests to their end. Raises RuntimeError if nothing can make progress."""
        idle = 0
        while self.left:
            work, time = self.step(policy)
            idle = 0 if work.prefill_tokens or work.decodes else idle + 1
            if idle > 1000:
                raise RuntimeError(f"{self.left} requests are left and the policy starts none")
            if on_step is not None:
                on_step(self, work, time)
        return self.totals

    def step(self, policy: FastPolicy) -> tuple[StepWork, StepTime]:
        """Play one step, in which nothing may happen; return what it did and its time."""
        self.cache.clock = self.step_number
        budget = policy.choose(self)
        self._make_room(policy)
        work = self._step(policy, budget)
        time = self.cost.step(work)
        totals = self.totals
        totals.seconds += time.seconds
        totals.compute += time.compute
        totals.memory += time.memory
        totals.steps += 1
        totals.kv_tokens += work.kv_tokens
        return work, time

    def _step(self, policy: FastPolicy, budget: int) -> StepWork:
        decodes = len(self.running)
        if decodes:
            self.cache.take(decodes)
            self.context += decodes
        prefill, scores, sampled = self._prefill(budget)
        work = StepWork(prefill, scores, len(sampled), decodes, self.context if decodes else 0)
        self.step_number += 1
        for request in self._ends.pop(self.step_number, ()):
            self._end(request, policy)
        for request in sampled:
            self._begin_decode(request, policy)
        return work

    def _prefill(self, budget: int) -> tuple[int, float, list[int]]:
        """Compute up to ``budget`` prompt tokens, in order; return which prompts are complete."""
        left, scores, done = budget, 0.0, 0
        for request in self.starting:
            if left <= 0:
                break
            todo = self.todo[request]
            tokens = min(todo, left)
            end = self.prompt[request] + self._kept.get(request, 0)
            scores += tokens * (end - todo + tokens / 2)
            left -= tokens
            if tokens < todo:
                self.todo[request] = todo - tokens
                self._share(request, end - todo + tokens)
                break
            del self.todo[request]
            done += 1
        sampled = self.starting[:done]
        del self.starting[:done]
        return budget - max(left, 0), scores, sampled

    def _share(self, request: int, computed: int) -> None:
        """Let others find the first ``computed`` tokens of a prompt, which are in the cache now."""
        hit = self._hit[request]
        self._own[request] -= self.cache.insert(request, hit, computed)
        self._hit[request] = max(hit, self.cache.reach(request, computed))

    def _begin_decode(self, request: int, policy: FastPolicy) -> None:
        self._share(request, self.prompt[request])
        del self._hit[request]
        self._joined[request] = self.step_number
        done = self._kept.pop(request, 0) + 1
        self.running[request] = self.step_number - done
        self.context += self.prompt[request] + done - 1
        left = self._output[request] - done
        if left <= 0:
            self._end(request, policy)
        else:
            self._ends.setdefault(self.step_number + left, []).append(request)

    def _end(self, request: int, policy: FastPolicy) -> None:
        self.cache.finish(request, self._leave(request))
        self.left -= 1
        policy.finished(request, self._output[request])

    def _leave(self, request: int) -> int:
        """Take a request out of the running set; return its own slots."""
        generated = self.step_number - self.running.pop(request)
        self.context -= self.prompt[request] + generated - 1
        return self._own.pop(request) + self.step_number - self._joined.pop(request)

    def _make_room(self, policy: FastPolicy) -> None:
        """Retract until the decode step finds a slot for every running request."""
        while len(self.running) > 1 and len(self.running) > self.cache.slots - self.cache.used:
            request = max(self.running, key=lambda r: (self.running[r], self.prompt[r], -r))
            generated = self.generated(request)
            end = self.step_number + self._output[request] - generated
            self._ends[end].remove(request)
            self.cache.retract(request, self._leave(request))
            self._kept[request] = generated
            self.totals.retractions += 1
            policy.retracted(request, generated)
