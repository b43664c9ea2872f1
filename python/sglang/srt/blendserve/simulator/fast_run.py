"""Runs policies on the fast step model."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.pool.pool_request import Tokens
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.blend_policy import BlendPolicy
from sglang.srt.blendserve.simulator.fast import FastEngine, FastPolicy
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.many_engines import Fleet, ManyEngines
from sglang.srt.blendserve.simulator.options import BlendOptions, told_lengths
from sglang.srt.blendserve.simulator.peers import (
    CHUNKS,
    CONSERVATIVENESS,
    PEERS,
    peer_order,
)
from sglang.srt.blendserve.simulator.queue_policy import EwmaPolicy, QueuePolicy
from sglang.srt.blendserve.simulator.result import Result
from sglang.srt.blendserve.simulator.round_robin import dealt, together
from sglang.srt.blendserve.simulator.simulated_policy import simulated_policy
from sglang.srt.blendserve.simulator.step_cost import StepTime, StepWork
from sglang.srt.blendserve.simulator.window_policy import FileAhead, PlanAhead, WindowPolicy
from sglang.srt.blendserve.simulator.workload import Workload

OURS = ("paper", "blendserve")
POLICIES = (*PEERS, *OURS)


@dataclass(slots=True)
class FastRun:
    """One workload on one machine; `run` plays a policy over it."""

    whole: Workload
    machine: Machine
    options: BlendOptions = field(default_factory=BlendOptions)
    """Options of our policies, unless `run` is given others."""
    watch: Callable[[FastEngine, StepWork, StepTime], None] | None = None
    """Called after each step, if given."""
    fleet: Fleet = field(default_factory=Fleet)
    """Engines that our policies feed from one plan. Peers have as many, which get the requests in
    turn."""
    replica: Workload = field(init=False)
    prompts: list[Tokens] = field(init=False)
    tree: PrefixTree = field(init=False)

    def __post_init__(self) -> None:
        self.replica = self.whole.replica(self.machine.scale)
        self.prompts = self.replica.prompts()
        self.tree = PrefixTree.build(self.prompts)

    def run(
        self,
        policy: str,
        *,
        chunks: Sequence[int] = CHUNKS,
        conservativeness: Sequence[float] = CONSERVATIVENESS,
        options: BlendOptions | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Result:
        """Play ``policy``; peers with each setting of their flags, of which the best counts.

        ``progress``: called with the number of requests that have ended since the last call.
        """
        if policy in OURS:
            return self._blend(policy, options or self.options, progress)
        settings = [*product(chunks, conservativeness)]
        if self.fleet.engines == 1:
            return Result.best([self._peer(policy, c, share, progress) for c, share in settings])
        parts = [self.whole.take(part) for part in dealt(self.whole.size, self.fleet.engines)]
        runs = [FastRun(part, self.machine) for part in parts]
        tried = []
        for setting in settings:
            each = [run._peer(policy, *setting, progress) for run in runs]
            tried.append(together(self.whole, parts, each))
        return Result.best(tried)

    def _peer(
        self,
        name: str,
        chunk: int,
        conservativeness: float,
        progress: Callable[[int], None] | None,
    ) -> Result:
        def make() -> FastPolicy:
            scale = self.machine.scale
            if name == "lpt-ewma":
                return EwmaPolicy(self.replica, chunk, scale, conservativeness)
            order = peer_order(name, self.replica, self.tree)
            return QueuePolicy(order, self.replica, chunk, scale, conservativeness)

        result = self._play(name, make, chunk, progress, plan_aware=False)
        result.conservativeness = conservativeness
        return result

    def _blend(
        self, name: str, options: BlendOptions, progress: Callable[[int], None] | None
    ) -> Result:
        if name == "paper":
            options = replace(options, pace="paper")
        if self.fleet.engines > 1:
            return self._many(name, options, progress)

        def make() -> FastPolicy:
            if options.window:
                return self._window_policy(options, self._ahead(options))
            told = told_lengths(self.replica, options.told)
            step_policy = simulated_policy(self.machine.kv_slots, self.machine, options)
            return BlendPolicy(
                self.replica, self.prompts, step_policy, told, known_ahead=options.known_ahead
            )

        return self._play(name, make, options.chunk, progress, plan_aware=not options.lru_eviction)

    def _ahead(self, options: BlendOptions) -> PlanAhead | FileAhead:
        if not options.plan_ahead:
            return FileAhead(self.replica.size)
        told = told_lengths(self.replica, options.told)
        requests = BlendPolicy.make_requests(self.replica, self.prompts, told)
        for request in requests:
            request.job_requests = len(requests)
        pool = RequestPool(self.machine.cost, self.machine.kv_slots, rules=options.rules)
        return PlanAhead(requests, pool, self.fleet.engines, options.known_ahead)

    def _window_policy(
        self,
        options: BlendOptions,
        ahead: PlanAhead | FileAhead,
        like: WindowPolicy | None = None,
    ) -> WindowPolicy:
        return WindowPolicy(
            self.replica,
            self.prompts,
            simulated_policy(self.machine.kv_slots, self.machine, options),
            ahead,
            options.window or self.replica.size,
            told_lengths(self.replica, options.told),
            like=like,
        )

    def _many(
        self, name: str, options: BlendOptions, progress: Callable[[int], None] | None
    ) -> Result:
        """Play a policy of ours on several engines."""
        if not options.plan_ahead:
            raise ValueError("several engines are fed by a plan")
        start = time.process_time()
        ahead = self._ahead(options)
        assert isinstance(ahead, PlanAhead)
        machines: list[FastEngine] = []
        policies: list[WindowPolicy] = []
        for _ in range(self.fleet.engines):
            machines.append(
                FastEngine(
                    self.replica,
                    self.tree,
                    self.machine.steps,
                    self.machine.kv_slots,
                    plan_aware_eviction=not options.lru_eviction,
                    like=machines[0] if machines else None,
                )
            )
            like = policies[0] if policies else None
            policies.append(self._window_policy(options, ahead, like))
        fleet = ManyEngines(self.fleet, machines, policies, ahead)
        ended = _Ended(progress, self.watch)
        with _no_collection():
            totals = fleet.run(ended.on_step)
        spent = time.process_time() - start
        result = Result.of(
            name, self.whole, self.replica, self.machine, totals, spent, options.chunk
        )
        result.share_of_optimum /= self.fleet.engines
        result.engines = [
            {
                "requests": share.requests,
                "busy_seconds": self.machine.real_seconds(share.busy_seconds),
                "ended_at": self.machine.real_seconds(share.ended_at),
            }
            for share in fleet.shares
        ]
        return result

    def _play(
        self,
        name: str,
        make: Callable[[], FastPolicy],
        chunk: int,
        progress: Callable[[int], None] | None,
        *,
        plan_aware: bool,
    ) -> Result:
        start = time.process_time()
        engine = FastEngine(
            self.replica,
            self.tree,
            self.machine.steps,
            self.machine.kv_slots,
            plan_aware_eviction=plan_aware,
        )
        ended = _Ended(progress, self.watch)
        with _no_collection():
            totals = engine.run(make(), on_step=ended.on_step)
        # The whole run: policy and step model are not told apart here.
        spent = time.process_time() - start
        return Result.of(name, self.whole, self.replica, self.machine, totals, spent, chunk)


class _Ended:
    """Tells of steps, and how many requests have ended since."""

    def __init__(
        self,
        progress: Callable[[int], None] | None,
        watch: Callable[[FastEngine, StepWork, StepTime], None] | None,
    ) -> None:
        self._progress, self._watch = progress, watch
        self._left: dict[int, int] = {}

    def on_step(self, engine: FastEngine, work: StepWork, time: StepTime) -> None:
        """An engine has played a step."""
        if self._watch is not None:
            self._watch(engine, work, time)
        if self._progress is not None:
            before = self._left.get(id(engine), engine.size)
            if engine.left != before:
                self._progress(before - engine.left)
                self._left[id(engine)] = engine.left


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the search for cycles of objects, of which a run leaves none behind; it would take a
    twentieth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
