"""Several engines on the fast step model, each with its own clock, fed from one plan.

The engine whose clock is behind plays its next step, so hand-overs happen in the order of time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sglang.srt.blendserve.simulator.fast import FastEngine, Totals
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.step_cost import StepTime, StepWork
from sglang.srt.blendserve.simulator.window_policy import PlanAhead, WindowPolicy
from sglang.srt.blendserve.simulator.workload import Workload


@dataclass(frozen=True, slots=True)
class Fleet:
    """Engines that are fed from one plan.

    Attributes:
        engines: how many.
        speeds: of each engine, 1: as fast as the machine; the last one counts for all that follow.
        dies_after: share of the requests that have ended when engine 0 dies; None: it lives.
    """

    engines: int = 1
    speeds: Sequence[float] = (1.0,)
    dies_after: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be."""
        if self.engines < 1:
            raise ValueError(f"--engines {self.engines}: must be at least 1")
        if not self.speeds or min(self.speeds) <= 0:
            raise ValueError(f"speeds {self.speeds}: must be positive")
        if self.dies_after is not None and self.engines == 1:
            raise ValueError("one engine that dies leaves nobody to go on")

    def speed(self, engine: int) -> float:
        """Return that of an engine."""
        return self.speeds[min(engine, len(self.speeds) - 1)]


def longest_alone(workload: Workload, machine: Machine) -> float:
    """Return how long the request with the longest output takes alone on an engine, seconds of the
    replica: no number of engines is faster.

    Args:
        workload: the replica.
    """
    request = int(workload.output_tokens.argmax())
    prompt, output = (
        int(tokens[request]) for tokens in (workload.prompt_tokens, workload.output_tokens)
    )
    steps = max(output // 64, 1)
    each = (
        machine.steps.step(StepWork(0, 0.0, 0, 1, prompt + done)).seconds
        for done in range(0, output, steps)
    )
    return sum(each) * steps


@dataclass(slots=True)
class EngineShare:
    """What one engine did.

    Attributes:
        requests: that it has answered.
        busy_seconds: of its steps.
        ended_at: seconds from the start to its last step.
    """

    requests: int = 0
    busy_seconds: float = 0.0
    ended_at: float = 0.0

    def add(self, clock: float, seconds: float, requests: int) -> None:
        """Count a step that began at ``clock``, and the requests that have ended with it."""
        self.requests += requests
        self.busy_seconds += seconds
        self.ended_at = clock + seconds


@dataclass(slots=True)
class ManyEngines:
    """Plays requests on a fleet.

    Attributes:
        shares: what each engine did.
    """

    fleet: Fleet
    machines: list[FastEngine]
    policies: list[WindowPolicy]
    ahead: PlanAhead
    shares: list[EngineShare] = field(init=False)

    def __post_init__(self) -> None:
        self.shares = [EngineShare() for _ in self.machines]

    def run(self, on_step: Callable[[FastEngine, StepWork, StepTime], None]) -> Totals:
        """Play all requests to their end; return what the engines add up to, of which the seconds
        are those of the last to end.

        Raises RuntimeError if nothing can make progress.
        """
        size = left = self.machines[0].left
        dies_at = size + 1
        if self.fleet.dies_after is not None:
            dies_at = int(self.fleet.dies_after * size)
        due = [(0.0, engine) for engine in range(len(self.machines))]
        idle: list[int] = []
        while left:
            if not due:
                raise RuntimeError(f"{left} requests are left and no engine starts any")
            clock, engine = heapq.heappop(due)
            if size - left >= dies_at and engine == 0:
                self.ahead.died(0, self.policies[0].give_back())
                dies_at = size + 1
                for waits in idle:
                    heapq.heappush(due, (clock, waits))
                idle.clear()
                continue
            machine, share = self.machines[engine], self.shares[engine]
            before = machine.left
            work, time = machine.step(self.policies[engine])
            on_step(machine, work, time)
            if not (work.prefill_tokens or work.decodes):
                idle.append(engine)  # it looks again when another engine has done something
                continue
            ended = before - machine.left
            left -= ended
            share.add(clock, time.seconds / self.fleet.speed(engine), ended)
            heapq.heappush(due, (share.ended_at, engine))
            for waits in idle:
                heapq.heappush(due, (share.ended_at, waits))
            idle.clear()
        return self._sum()

    def _sum(self) -> Totals:
        total = Totals(seconds=max(share.ended_at for share in self.shares))
        for one in self._totals():
            total.compute += one.compute / self.fleet.engines
            total.memory += one.memory / self.fleet.engines
            total.steps += one.steps
            total.prefilled += one.prefilled
            total.retractions += one.retractions
            total.kv_tokens += one.kv_tokens
        return total

    def _totals(self) -> Iterator[Totals]:
        return (machine.totals for machine in self.machines)
