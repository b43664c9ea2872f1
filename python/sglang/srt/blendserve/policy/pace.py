"""Pacing: how many prompt tokens the next step computes, and from which end of the scan.

Time is lost whenever a step holds less than its share of one resource while the rest of the pool
still needs both. So each step admits just so much prefill that its compute : memory ratio equals
that of all remaining work (DESIGN.md, "Scheduling" (1)):

    (decode compute + prefill compute) : (KV read + weights)
        =  remaining compute : remaining KV read * (1 + weights / KV read of a full cache)

The last factor is the weight loading that the remaining KV traffic brings along when the memory
is kept full; the paper leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.remaining_work import RemainingWork


class StepLoad(NamedTuple):
    """What the next step carries before any prefill is added."""

    running: int
    """Requests that decode one token."""
    kv_tokens: float
    """KV tokens they read."""
    prompt_cost: float = 1.0
    """What a prompt token costs, times one that attends to nothing (`PromptCost`)."""


class Rest(Protocol):
    """All work still to do; a step adds it up only if it is asked."""

    @property
    def compute(self) -> float:
        """As of `RemainingWork`."""

    @property
    def memory(self) -> float:
        """As of `RemainingWork`."""


class RestOnDemand:
    """A rest that is added up when a pace looks at it."""

    def __init__(self, find: Callable[[], RemainingWork]) -> None:
        self._find = find

    @property
    def compute(self) -> float:
        return self._find().compute

    @property
    def memory(self) -> float:
        return self._find().memory


class PrefillBudget(NamedTuple):
    """Prompt tokens to compute in the next step, from either end of the scan."""

    compute_side: int
    """At most this many tokens may be spent if any of them go to the compute-bound end."""
    memory_side: int
    """At most this many tokens in all; at least ``compute_side``."""


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


_LEAST_BESIDE_ONLINE = 32
"""Prompt tokens a step may compute beside online decodes however short these are: fewer would
hardly be cheaper, and the pool would stand still."""


def beside_online(cost: CostModel, load: StepLoad, share: float, most: int) -> int:
    """Prompt tokens of offline requests that take at most ``share`` of a step's time.

    ``load``: what the step decodes, online and offline; ``most``: tokens it could compute at all.
    """
    if share >= 1:
        return most
    decode = float(
        cost.decode_compute_seconds(load.running, load.kv_tokens)
        + cost.kv_read_seconds(load.kv_tokens)
        + cost.weights_seconds(load.running)
    )
    tokens = int(share / (1 - share) * decode / float(cost.prefill_seconds(1.0)))
    return min(max(tokens, _LEAST_BESIDE_ONLINE), most)


class Pace(Protocol):
    """Decides the prefill budget of a step."""

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """Prompt tokens for the next step. Never zero when nothing is running."""
        ...


@dataclass(frozen=True, slots=True)
class FixedPace:
    """The same number of prompt tokens in every step (stock SGLang: ``--chunked-prefill-size``).

    As there, running requests count against the step's tokens.
    """

    step_tokens: int

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        tokens = max(self.step_tokens - load.running, 1)
        return PrefillBudget(tokens, tokens)


@dataclass(frozen=True, slots=True)
class BalancePace:
    """As much compute in every step as its memory traffic hides.

    No step is then longer than its longer resource needs, whichever of the two the pool has more
    of, and no prediction of the remaining work is needed. What is left at the end is work of the
    scarcer kind's opposite alone, which no pace could have hidden; and where compute is the more,
    the long outputs are through before it ends.
    """

    cost: CostModel
    max_tokens: int
    """Largest prefill of one step, tokens."""

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """The prompt tokens that bring the step's compute up to its memory traffic."""
        if load.running == 0:
            return PrefillBudget(self.max_tokens, self.max_tokens)
        decode, memory = self.cost.decode_step_seconds(load.running, load.kv_tokens)
        token = self.cost.prompt_token_seconds() * load.prompt_cost
        tokens = int(min(max((memory - decode) / token, 0.0), self.max_tokens))
        return PrefillBudget(tokens, tokens)


@dataclass(frozen=True, slots=True)
class RatioPace:
    """The ratio of the remaining work in every step."""

    cost: CostModel
    kv_slots: int
    """KV tokens the cache holds."""
    max_tokens: int
    """Largest prefill of one step, tokens."""

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """The prompt tokens that bring the step to the ratio of the rest.

        The memory-bound end may besides use compute that would stay idle beside the step's memory
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
