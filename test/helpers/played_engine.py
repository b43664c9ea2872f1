"""The simulator's engine with requests that come, are aborted and share prefixes, for properties.

`FastEngine` keeps time and memory; `Played` feeds it from a `RequestPool` as SGLang's scheduler
does, and checks every choice of the step policy against what holds for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.policy.named import make_step_policy
from sglang.srt.blendserve.policy.state import EngineState, Selection
from sglang.srt.blendserve.policy.tuning import DEFAULTS, Tuning
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.fast import FastEngine
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.workload import Workload

MACHINE = Machine.build("Llama-3.1-8B", "A100-80G", "overlap", kv_slots=400)
SLOTS = MACHINE.kv_slots


@dataclass(frozen=True)
class Asked:
    """One request of a play."""

    prompt: list[int]
    max_tokens: int
    length: int
    """True output length, which the policy is told only if it is ``known``."""
    known: bool = False
    namespace: str = ""
    arrives: int = 0
    """The step before which it comes."""
    aborted: int | None = None
    """The step before which its client gives it up, wherever it is by then."""


@dataclass(frozen=True)
class Online:
    """Requests outside the pool: so many that decode, and the slots that they hold."""

    begin: int
    end: int
    requests: int
    slots: int


class _Enough(Exception):
    """The steps that were asked for are done."""


class Played:
    """One engine with its pool, which notes what the policy chose."""

    def __init__(
        self,
        asked: Sequence[Asked],
        pace: str = "marginal",
        *,
        slots: int = SLOTS,
        spare: int = 0,
        max_tokens: int = 64,
        min_tokens: int = 1,
        whole_prompts: bool = False,
        most_running: int = 64,
        online: Sequence[Online] = (),
        rules: PlanningRules | None = None,
        tuning: Tuning = DEFAULTS,
    ) -> None:
        """``spare``: slots that the engine has and the pool does not know of. With enough of them
        the engine gives nothing back whatever is chosen, and `most_used` says what was needed."""
        self.asked, self.online = asked, online
        self.slots, self.most_running = slots, most_running
        self.max_tokens, self.min_tokens = max_tokens, min_tokens
        self.whole_prompts = whole_prompts
        self.splits_one = pace != "paper"
        """Whether at most one prompt is split in a step; the paper's scanner has a budget for each
        side, and may split one at each."""
        prompts = [np.array(one.prompt, dtype=np.int32) for one in asked]
        names = sorted({one.namespace for one in asked})
        tree = PrefixTree.build(prompts, np.array([names.index(one.namespace) for one in asked]))
        self.engine = FastEngine(_lengths(asked), tree, MACHINE.steps, slots + spare)
        self.pool = RequestPool(MACHINE.cost, slots, rules=rules)
        self.policy = make_step_policy(
            self.pool,
            pace,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            whole_prompts=whole_prompts,
            tuning=tuning,
        )
        self.requests = [
            PoolRequest(str(at), prompt, one.max_tokens, one.known, namespace=one.namespace)
            for at, (prompt, one) in enumerate(zip(prompts, asked, strict=True))
        ]
        self.started: list[int] = []
        """As they were handed out, those again that were given back."""
        self.ended: list[int] = []
        self.aborted: list[int] = []
        self.given_back = 0
        """Requests that the engine had no slots for, or no longer."""
        self.most_used = 0
        """Most slots that were held at once. Those of prompt tokens still to compute, which this
        engine takes beforehand, SGLang does not hold yet."""
        self.choices: list[tuple[int, ...]] = []
        """Prefill tokens and requests of every step."""

    def run(self, steps: int | None = None) -> Played:
        """Play all requests to their end, or so many ``steps`` further."""
        last = None if steps is None else self.engine.step_number + steps

        def look(engine: FastEngine, *_: object) -> None:
            used = engine.cache.used - sum(engine.todo.values())
            self.most_used = max(self.most_used, used)
            if engine.step_number == last:
                raise _Enough

        with suppress(_Enough):
            self.engine.run(self, on_step=look)
            assert self.engine.cache.used == sum(load.slots for load in self._online_now())
            assert len(self.pool) == len(self.pool.table.running) == 0
        return self

    @property
    def decoding(self) -> list[PoolRequest]:
        """The requests that have had their first token and run."""
        return [self.requests[number] for number in self.engine.running]

    # --- what the engine asks (`FastPolicy`) --------------------------------------------------

    def choose(self, engine: FastEngine) -> int:
        """Let time pass outside the engine, and start what the policy chooses."""
        self._pass_time(engine.step_number)
        if not engine.left:
            return 0
        assert engine.cache.used <= engine.cache.slots
        for number in engine.running:
            self.requests[number].generated = engine.generated(number)
        self.pool.plan_if_due(quiet=True)
        state = self._state(engine)
        selection = self._select(state)
        numbers = [int(request.rid) for request in selection.requests]
        self.choices.append((selection.prefill_tokens, *numbers))
        for place, number in enumerate(numbers):
            if not engine.start(number):
                for refused in reversed(selection.requests[place:]):
                    self.given_back += 1
                    self.pool.put_back(refused)
                numbers = numbers[:place]
                break
        self.started += numbers
        return selection.prefill_tokens

    def finished(self, request: int, output_tokens: int) -> None:
        """A length was seen."""
        self.ended.append(request)
        self.pool.finish(self.requests[request], output_tokens)

    def retracted(self, request: int, generated: int) -> None:
        """The request keeps its turn and what it has generated."""
        self.given_back += 1
        self.requests[request].generated = generated
        self.pool.put_back(self.requests[request])

    # --- what happens around it ---------------------------------------------------------------

    def _pass_time(self, now: int) -> None:
        cache = self.engine.cache
        for load in self.online:
            if now == load.end:
                cache.own_tokens -= load.slots
        for load in self.online:
            if now == load.begin and not cache.take(load.slots):
                cache.own_tokens += load.slots
                self.engine._make_room(self)
        for number, one in enumerate(self.asked):
            if one.arrives == now:
                self.pool.add(self.requests[number])
            if one.aborted == now and one.arrives <= now:
                self._abort(number)

    def _online_now(self) -> list[Online]:
        now = self.engine.step_number - (not self.engine.left)
        return [load for load in self.online if load.begin <= now < load.end]

    def _abort(self, number: int) -> None:
        request, engine = self.requests[number], self.engine
        if request.rid not in self.pool.table.by_rid or number in engine.starting:
            return
        if number in engine.running:
            end = engine.step_number + self.asked[number].length - engine.generated(number)
            engine._ends[end].remove(number)
            engine.cache.finish(number, engine._leave(number))
        engine.left -= 1
        self.aborted.append(number)
        self.pool.forget(request)

    def _state(self, engine: FastEngine) -> EngineState:
        online = self._online_now()
        begun = engine.starting[0] if engine.starting else None
        left = 0 if begun is None else engine.todo[begun]
        running = len(engine.running)
        return EngineState(
            running=running + sum(load.requests for load in online),
            kv_tokens=engine.context + running + sum(load.slots for load in online),
            used_slots=engine.cache.used - left,
            free_requests=self.most_running - running - len(engine.starting),
            cached_tokens=lambda request: engine.cache.hit(int(request.rid)),
            chunk=None if begun is None else self.requests[begun],
            chunk_tokens=left,
        )

    # --- what holds for every choice ----------------------------------------------------------

    def _select(self, state: EngineState) -> Selection:
        pool = self.pool
        waiting = {request.rid for request in pool.table.everyone_waiting()}
        assert len(waiting) == len(pool)
        returned = [(request, request.side) for request in pool.table.returned]
        cached = {rid: self.engine.cache.hit(int(rid)) for rid in waiting}
        selection = self.policy.select(state)
        chosen = selection.requests
        rids = [request.rid for request in chosen]
        assert len({*rids}) == len(rids), "handed out twice in a step"
        assert {*rids} <= waiting, "handed out what did not wait"
        assert {request.rid for request in pool.table.everyone_waiting()} == waiting - {*rids}
        assert len(chosen) <= max(state.free_requests, 0)
        todo = [max(r.prompt.size + r.generated - cached[r.rid], 1) for r in chosen]
        self._check_prefill(state, selection.prefill_tokens, todo)
        first = [request for request, _ in returned if request.rid in rids]
        assert chosen[: len(first)] == first, "returned requests come first, in their turn"
        assert first == [request for request, _ in returned[: len(first)]]
        for request, side in returned:
            outlived = request.generated > request.expected_tokens
            assert request.side is side or (request.side is Side.MEMORY and outlived)
        idle = not state.running and state.chunk is None
        if idle and waiting and state.free_requests:
            assert chosen, "an idle engine starts something"
        return selection

    def _check_prefill(self, state: EngineState, tokens: int, todo: list[int]) -> None:
        """The last prompt alone may be split, and no piece is smaller than is worth a step."""
        parts = [state.chunk_tokens, *todo] if state.chunk is not None else todo
        if self.whole_prompts and state.chunk is None:
            assert tokens == sum(todo)
            assert tokens <= self.max_tokens or len(todo) <= 1
            return
        assert tokens <= self.max_tokens
        assert tokens <= sum(parts)
        if todo and self.splits_one:
            assert tokens > sum(parts[:-1]), "nothing is left for the last one"
        assert tokens == sum(parts) or tokens >= self.min_tokens


def _lengths(asked: Sequence[Asked]) -> Workload:
    """What the engine knows of the requests: lengths; prefixes are the tree's."""
    n = len(asked)
    return Workload(
        name="played",
        prompt_tokens=np.array([len(one.prompt) for one in asked]),
        output_tokens=np.array([one.length for one in asked]),
        max_tokens=np.array([one.max_tokens for one in asked]),
        prefix=np.full(n, -1),
        prefix_tokens=np.zeros(n, dtype=np.int64),
        source=np.zeros(n, dtype=np.int64),
        sources=("played",),
        seed=0,
    )
