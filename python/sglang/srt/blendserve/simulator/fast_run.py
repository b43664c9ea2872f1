"""Runs policies on the fast step model."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.policy.named import make_step_policy
from sglang.srt.blendserve.policy.pace import automatic_pace
from sglang.srt.blendserve.pool.pool_request import Tokens
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.blend_policy import BlendPolicy
from sglang.srt.blendserve.simulator.fast import FastEngine, FastPolicy
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions, told_lengths
from sglang.srt.blendserve.simulator.peers import (
    CHUNKS,
    CONSERVATIVENESS,
    PEERS,
    peer_order,
)
from sglang.srt.blendserve.simulator.queue_policy import EwmaPolicy, QueuePolicy
from sglang.srt.blendserve.simulator.result import Result
from sglang.srt.blendserve.simulator.step_cost import StepTime, StepWork
from sglang.srt.blendserve.simulator.window_policy import WindowPolicy
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
        settings = product(chunks, conservativeness)
        return Result.best([self._peer(policy, c, share, progress) for c, share in settings])

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
        machine = self.machine
        pace = "paper" if name == "paper" else options.pace
        if pace == "auto":
            pace = automatic_pace(overlaps=machine.overlaps)

        def make() -> FastPolicy:
            pool = RequestPool(machine.cost, machine.kv_slots, rules=options.rules)
            policy = make_step_policy(pool, pace, max_tokens=options.chunk, tuning=options.tuning)
            told = told_lengths(self.replica, options.told)
            if options.window:
                everything = RequestPool(machine.cost, machine.kv_slots, rules=options.rules)
                return WindowPolicy(
                    self.replica,
                    self.prompts,
                    policy,
                    everything,
                    options.window,
                    told,
                    plan_ahead=options.plan_ahead,
                    known_ahead=options.known_ahead,
                )
            return BlendPolicy(
                self.replica, self.prompts, policy, told, known_ahead=options.known_ahead
            )

        return self._play(name, make, options.chunk, progress, plan_aware=not options.lru_eviction)

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
        left = engine.left

        def on_step(engine: FastEngine, work: StepWork, time: StepTime) -> None:
            nonlocal left
            if self.watch is not None:
                self.watch(engine, work, time)
            if progress is not None and engine.left != left:
                progress(left - engine.left)
                left = engine.left

        # A run leaves no cycles of objects behind; the search for them would take a twentieth of
        # the time.
        collects = gc.isenabled()
        gc.disable()
        try:
            policy = make()
            totals = engine.run(policy, on_step=on_step)
        finally:
            if collects:
                gc.enable()
        # The whole run: policy and step model are not told apart here.
        spent = time.process_time() - start
        return Result.of(name, self.whole, self.replica, self.machine, totals, spent, chunk)
