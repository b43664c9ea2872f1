"""Pacing: how many prompt tokens the next step computes, and from which side of the scan.

The paper admits a fixed number of prompt tokens a step from each side (C_L and C_R of section 5.3,
see `paper`). Time is lost whenever a step has too little work for one resource while the pool still
needs both, so the paces here look at the step as it is. `BalancePace` hides compute under memory
traffic, `SpreadPace` is for engines that overlap nothing, `RatioPace` keeps the ratio of all that
is left, and `FixedPace` is stock SGLang's.
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
    """Prompt tokens to compute in the next step, from either side of the scan."""

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


@dataclass(frozen=True, slots=True)
class BalancePace:
    """Gives every step as much compute as its memory traffic hides, or more if more is left.

        decode compute + prefill compute of the step
            =  (KV read + weights of the step) * max(compute_scarcity, 1)

    Where memory traffic is the more of what is left, no step is longer than its traffic, and no
    prediction of the remaining work is needed. Where compute is the more, all traffic can be hidden
    beneath it, and each step takes its share. With no more than its traffic hides, few requests
    would decode, so there would be little traffic, and thousands of steps too short to be worth
    their fixed cost and the loading of the weights.
    """

    cost: CostModel
    kv_slots: int
    """KV tokens the cache holds."""
    max_tokens: int
    """Largest prefill of one step, tokens."""

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """Return the prompt tokens that bring the step's compute up to its traffic, or above it."""
        if load.running == 0:
            return PrefillBudget(self.max_tokens, self.max_tokens)
        decode, memory = self.cost.decode_step_seconds(load.running, load.kv_tokens)
        token = self.cost.prompt_token_seconds() * load.prompt_cost
        share = max(compute_scarcity(self.cost, self.kv_slots, load.running, rest), 1.0)
        tokens = int(min(max((share * memory - decode) / token, 0.0), self.max_tokens))
        return PrefillBudget(tokens, tokens)


@dataclass(frozen=True, slots=True)
class SpreadPace:
    """The remaining compute spread over the remaining KV reads, for engines without overlap.

    Nothing hides behind anything there, so a step cannot be balanced. But the weights are loaded
    once a step, and a matrix product of enough tokens hides that: what can be lost to pace is the
    loading of weights in steps with few tokens. Such steps come where decodes are left without
    prefill beside them. So the prefill that is left is spread evenly over the KV reads that are
    left,

        prefill compute of the step = remaining compute * (KV read of the step / remaining KV reads)
                                      - decode compute of the step

    and the two end together. No step is given fewer tokens than hide the loading of its weights.
    """

    cost: CostModel
    max_tokens: int
    """Largest prefill of one step, tokens."""

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """Return the step's part of the prefill, and at least what hides its weights."""
        left = rest.memory
        if load.running == 0 or not left > 0:
            return PrefillBudget(self.max_tokens, self.max_tokens)
        read = float(self.cost.kv_read_seconds(load.kv_tokens))
        decode = float(self.cost.decode_compute_seconds(load.running, load.kv_tokens))
        part = rest.compute / left * read
        # Where both are predicted to have no end: as much of one as of the other.
        even = (read if math.isnan(part) else part) - decode
        # Attention over the KV cache, the rest of the decodes' compute, loads no weights.
        products = float(self.cost.decode_compute_seconds(load.running))
        hiding = float(self.cost.weights_seconds(self.max_tokens)) - products
        tokens = max(even, hiding, 0.0) / self.cost.prompt_token_seconds()
        allowed = self.max_tokens if math.isinf(tokens) else min(math.ceil(tokens), self.max_tokens)
        return PrefillBudget(allowed, allowed)


@dataclass(frozen=True, slots=True)
class RatioPace:
    """The ratio of the remaining work in every step.

        (decode compute + prefill compute) : (KV read + weights)
            =  remaining compute : remaining KV read * (1 + weights / KV read of a full cache)

    The last factor is the weight loading that the remaining KV traffic brings along when the memory
    is kept full; the paper leaves it out.
    """

    cost: CostModel
    kv_slots: int
    """KV tokens the cache holds."""
    max_tokens: int
    """Largest prefill of one step, tokens."""

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """Return the prompt tokens that bring the step to the ratio of the rest.

        The memory-bound side may besides use compute that would stay idle beside the step's memory
        traffic: its requests are what fills the memory, and filling it late costs more than
        computing their short prompts early.
        """
        if load.running == 0:
            return PrefillBudget(self.max_tokens, self.max_tokens)
        weights = float(self.cost.weights_seconds(load.running))
        memory = float(self.cost.kv_read_seconds(load.kv_tokens)) + weights
        decode = float(self.cost.decode_compute_seconds(load.running, load.kv_tokens))
        token = float(self.cost.prefill_seconds(1.0)) * load.prompt_cost
        ratio = compute_scarcity(self.cost, self.kv_slots, load.running, rest)
        if math.isinf(ratio):
            return PrefillBudget(self.max_tokens, self.max_tokens)
        even = (ratio * memory - decode) / token
        slack = (memory - decode) / token
        return PrefillBudget(self._clip(even), self._clip(max(even, slack)))

    def _clip(self, tokens: float) -> int:
        return int(min(max(tokens, 0.0), self.max_tokens))


PACES = ("balance", "spread", "ratio", "fixed", "paper")
"""``balance``: as much compute as a step's memory traffic hides. ``spread``: the remaining prefill
spread over the remaining decodes. ``ratio``: the ratio of all remaining work in every step.
``fixed``: a full chunk in every step. ``paper``: the paper's partition of the memory and its
budgets, without predicted peaks."""


def automatic_pace(*, overlaps: bool) -> str:
    """Name of the pace for an engine whose steps run compute and memory traffic at once, or not."""
    return "balance" if overlaps else "spread"
