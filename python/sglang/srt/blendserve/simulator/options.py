"""Parts of our policies that a simulation can switch, and what it tells them of output lengths."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.policy.tuning import Tuning
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.simulator.workload import Workload

Ints = NDArray[np.int64]

BLEND_CHUNK = 8192
"""Largest prefill of a step for policies that set their own pace, tokens."""


@dataclass(frozen=True, slots=True)
class BlendOptions:
    """Parts of the policy that ablations switch; the defaults are the policy as it is."""

    pace: str = "auto"
    """A pace by name; ``auto``: `marginal`."""
    chunk: int = BLEND_CHUNK
    """Largest prefill of a step, tokens."""
    told: str = ""
    """Lengths the policy is told: see `told_lengths`."""
    window: int = 0
    """Requests that the engine holds at most, waiting and running; 0: all of them."""
    plan_ahead: bool = True
    """Whether a plan over everything says which requests come into the window next; else they come
    in the order of the file (an ablation)."""
    known_ahead: float = 1.0
    """Part of the requests that are there from the start, in the order of the file; of the others
    one comes whenever one has ended, as jobs that arrive over time."""
    lru_eviction: bool = False
    """Evict the least recently used instead of what the plan needs last."""
    rules: PlanningRules = field(default_factory=PlanningRules)
    """How the pool plans."""
    tuning: Tuning = field(default_factory=Tuning)
    """Constants of the step policy."""

    @classmethod
    def of(cls, **values: Any) -> BlendOptions:
        """Options from values of these fields and of those of `PlanningRules` and `Tuning`.

        Raises TypeError for a name that none of them has.
        """
        rules = {f.name: values.pop(f.name) for f in fields(PlanningRules) if f.name in values}
        tuning = {f.name: values.pop(f.name) for f in fields(Tuning) if f.name in values}
        return cls(**values, rules=PlanningRules(**rules), tuning=Tuning(**tuning))

    def as_dict(self) -> dict[str, Any]:
        """All values by name, for JSON: what `of` takes."""
        values = asdict(self)
        rules, tuning = values.pop("rules"), values.pop("tuning")
        return values | rules | tuning


def told_lengths(workload: Workload, what: str) -> Ints | None:
    """(n,) what a policy is told of output lengths and takes for exact; None: nothing.

    ``what``: ``true`` lengths, ``wrong`` ones (half or double at random), the ``mean`` of all, or
    the empty string for nothing. Raises ValueError for anything else.
    """
    if not what:
        return None
    true = workload.output_tokens
    if what == "true":
        return true
    if what == "wrong":
        factor = np.random.default_rng([workload.seed, 6]).choice((0.5, 2.0), true.size)
        return np.maximum(np.round(true * factor), 1).astype(np.int64)
    if what == "mean":
        return np.full(true.size, max(round(float(true.mean())), 1), dtype=np.int64)
    raise ValueError(f"told lengths {what!r}: choose from true, wrong, mean")
