"""The result of one policy, as `sglang-blendserve simulate` reports it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sglang.srt.blendserve.simulator.fast import Totals
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.step_cost import bound
from sglang.srt.blendserve.simulator.workload import Workload


@dataclass(slots=True)
class Result:
    """Figures of a run; times and rates are those of the whole system, not of the replica."""

    policy: str
    tokens_per_second: float
    """Prompt and output tokens over the time on the device's clock."""
    seconds: float
    steps: int
    prefix_sharing: float
    """Share of prompt tokens that were found cached."""
    prefix_sharing_optimum: float
    share_of_optimum: float
    """Time of the bound over the time of the run."""
    compute_busy: float
    memory_busy: float
    kv_occupancy: float
    """KV tokens read per step over KV slots, mean over steps."""
    retractions: int
    scheduler_seconds: float
    """Time of the policy on this machine; not part of ``seconds``."""
    chunk: int
    """Largest number of tokens in a step."""
    conservativeness: float | None = None
    """SGLang's ``--schedule-conservativeness``; None where its admission is not used."""
    tried: list[dict[str, float]] = field(default_factory=list)
    """``chunk``, ``conservativeness`` and ``tokens_per_second`` of each setting tried."""
    engines: list[dict[str, float]] = field(default_factory=list)
    """``requests``, ``busy_seconds`` and ``ended_at`` of each engine, where there are several."""

    @classmethod
    def of(
        cls,
        policy: str,
        whole: Workload,
        replica: Workload,
        machine: Machine,
        totals: Totals,
        scheduler_seconds: float,
        chunk: int,
    ) -> Result:
        """From what a run added up to. ``whole``: the workload at scale 1."""
        seconds = machine.real_seconds(totals.seconds)
        prompt = int(replica.prompt_tokens.sum())
        optimum = bound(replica, machine.steps, machine.kv_slots)
        return cls(
            policy=policy,
            tokens_per_second=whole.tokens / seconds,
            seconds=seconds,
            steps=totals.steps,
            prefix_sharing=1 - totals.prefilled / prompt,
            prefix_sharing_optimum=replica.sharing,
            share_of_optimum=optimum.seconds / totals.seconds,
            compute_busy=totals.compute / totals.seconds,
            memory_busy=totals.memory / totals.seconds,
            kv_occupancy=totals.kv_tokens / max(totals.steps, 1) / machine.kv_slots,
            retractions=totals.retractions,
            scheduler_seconds=scheduler_seconds,
            chunk=chunk,
        )

    @classmethod
    def best(cls, results: list[Result]) -> Result:
        """The fastest of a policy's ``results``, which notes what the others were."""
        best = max(results, key=lambda r: r.tokens_per_second)
        best.tried = [
            {
                "chunk": r.chunk,
                "conservativeness": r.conservativeness or 0.0,
                "tokens_per_second": r.tokens_per_second,
            }
            for r in results
        ]
        return best

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for JSON."""
        return asdict(self)
