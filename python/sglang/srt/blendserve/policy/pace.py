"""Pacing: how many prompt tokens the next step computes, and from which side of the scan.

The paper admits a fixed number of prompt tokens a step from each side (C_L and C_R of section 5.3,
see `paper`). What they cost depends on the step that they join, so `marginal_pace` looks at that.
`FixedPace` is stock SGLang's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.plan.scanner import Side


class StepLoad(NamedTuple):
    """What the next step carries before any prefill is added."""

    running: int
    """Requests that decode one token."""
    kv_tokens: float
    """KV tokens that the decoding requests read."""
    prompt_cost: float = 1.0
    """Compute of a prompt token over that of one that attends to nothing (`PromptCost`)."""
    begun: bool = False
    """Whether a prompt is partly computed."""
    context: float = 0.0
    """KV tokens that a decode reads in the mean until the requests in flight have ended; 0: as
    many as now."""


class Rest(Protocol):
    """All work still to do; a step adds it up only if it is asked."""

    @property
    def compute(self) -> float:
        """Compute of all work still to do, seconds."""

    @property
    def memory(self) -> float:
        """KV cache reads of all work still to do, without weight loading, seconds."""


class RestOnDemand:
    """The work still to do, added up by ``find`` when a pace looks at it."""

    def __init__(self, find: Callable[[], RemainingWork]) -> None:
        self._find = find

    @property
    def compute(self) -> float:
        """Compute of all work still to do, seconds."""
        return self._find().compute

    @property
    def memory(self) -> float:
        """KV cache reads of all work still to do, without weight loading, seconds."""
        return self._find().memory


class PrefillBudget(NamedTuple):
    """Prompt tokens to compute in the next step, from either side of the scan. Only `paper` has
    two budgets; other paces say the same of both sides."""

    compute_side: int
    """At most this many tokens may be spent if any of them go to the compute-bound side."""
    memory_side: int
    """At most this many tokens in all; at least ``compute_side``."""

    def of(self, side: Side) -> int:
        """The budget of ``side``, tokens."""
        return self.compute_side if side is Side.COMPUTE else self.memory_side

    def at_most(self, tokens: int | None) -> PrefillBudget:
        """The budget with no more than ``tokens`` on either side; None: as it is."""
        if tokens is None:
            return self
        return PrefillBudget(min(self.compute_side, tokens), min(self.memory_side, tokens))


class SavedPrefill:
    """The prefill budget that steps have left over because it was too small for one."""

    def __init__(self, min_tokens: int) -> None:
        """``min_tokens``: fewest prompt tokens that are worth computing in a step."""
        self.latest = PrefillBudget(0, 0)
        """What the pace allowed the last step, without what was saved up."""
        self._min_tokens = min_tokens
        self._tokens = 0.0

    def add(self, budget: PrefillBudget) -> PrefillBudget:
        """Add a step's ``budget`` to what is saved; return what the step may spend."""
        self.latest = budget
        # Only what is too small for a step is kept for a later one.
        most = float(max(budget.compute_side, self._min_tokens))
        self._tokens = min(self._tokens + budget.compute_side, most)
        if not budget.memory_side:  # the step is meant to have no prompt
            return budget
        compute_side = int(self._tokens)
        memory_side = max(compute_side, budget.memory_side)
        return PrefillBudget(
            compute_side if compute_side >= self._min_tokens else 0,
            memory_side if memory_side >= self._min_tokens else 0,
        )

    def spend(self, tokens: int) -> None:
        """Count the prompt ``tokens`` that a step computes against what is saved."""
        self._tokens = max(0.0, self._tokens - tokens)


def compute_scarcity(cost: CostModel, kv_slots: int, running: int, rest: Rest) -> float:
    """Time of the remaining compute over that of the remaining memory traffic with its weights.

    ``running``: requests whose decodes load the weights of a step. Infinite without traffic; 1
    where both are predicted to have no end.
    """
    full_read = float(cost.kv_read_seconds(kv_slots))
    memory = rest.memory * (1 + float(cost.weights_seconds(max(running, 1))) / full_read)
    ratio = rest.compute / memory if memory > 0 else math.inf
    return 1.0 if math.isnan(ratio) else ratio


def rise(value: float, start: float, width: float) -> float:
    """0 up to ``start``, 1 from ``start`` + ``width`` on, and a straight line between."""
    return min(max((value - start) / width, 0.0), 1.0)


class Pace(Protocol):
    """Decides the prefill budget of a step."""

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """Return the prompt tokens for the next step, never zero when nothing is running."""
        ...


@dataclass(frozen=True, slots=True)
class FixedPace:
    """A constant number of tokens in every step (stock SGLang: ``--chunked-prefill-size``).

    As in SGLang, each running request counts as one of them.
    """

    step_tokens: int

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """Return what the running requests leave of the step's tokens."""
        tokens = max(self.step_tokens - load.running, 1)
        return PrefillBudget(tokens, tokens)


PACES = ("marginal", "fixed", "paper")
"""``marginal``: the remaining prompts spread over the remaining steps, where they add least time.
``fixed``: a full chunk in every step. ``paper``: the paper's partition of the memory and its
budgets, without predicted peaks."""
