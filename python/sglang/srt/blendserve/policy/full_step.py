"""A step of what is left with a full KV cache: what more memory is worth, and when none is.

A step holds prompts and decodes in the proportion in which they are left. Twice the memory lets it
hold twice of both. That pays as long as a larger step costs less for each token: its fixed time and
the loading of the weights are shared by more. Where compute is the scarcer resource, or prompts
alone fill the step, it does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.step_seconds import StepSeconds
from sglang.srt.blendserve.policy.pace import Rest, StepLoad

FULL = 0.95
"""Part of the KV cache that is taken to be read in each step that is left. Unproven."""

_ALIKE = 0.002
"""Part of the time of a token up to which more of it counts as no more. Unproven."""

_TILE = 128
"""Tokens of a step that are compared: multiples, as tiles of kernels are; of a fourth of it in
smaller steps."""

_LESS = 0.8
"""A smaller step to compare the full one with, as a part of it. Unproven."""

_MORE, _AT_LEAST = 0.5, 256
"""Prompt tokens by which a step is made larger to see what one costs: as a part of those that it
has, and besides. Unproven."""

_CHEAP = 0.25
"""Least cost of a prompt token, as a part of its compute alone. Unproven."""

_PARTS = [2.0 ** (-k / 4) for k in range(17)]
"""Smaller steps that are compared, as parts of the full one."""


class FullStep(NamedTuple):
    """What a step holds while the KV cache is full."""

    prompt_tokens: float
    """Prompt tokens to compute; negative where the decodes alone are more than the compute left."""
    decodes: float
    """Requests that decode one token."""
    kv_tokens: float
    """KV tokens that they read."""


@dataclass(frozen=True, slots=True)
class FullSteps:
    """Full steps of one engine, and what they say about its memory."""

    cost: CostModel
    """Of the model on the device, by which the remaining work was added up."""
    steps: StepSeconds
    """What a step takes."""
    kv_slots: int
    """KV tokens the cache holds."""
    max_tokens: int
    """Largest prefill of one step, tokens."""

    def of(self, load: StepLoad, rest: Rest) -> FullStep:
        """Return the step in which ``rest`` is computed if memory is full to its end.

        ``load``: the step as it is, whose decodes are taken to be like those that come.
        """
        kv_tokens = FULL * self.kv_slots
        steps = rest.memory / float(self.cost.kv_read_seconds(kv_tokens))
        decodes = float(self.cost.decode_compute_seconds(load.running, load.kv_tokens))
        token = self.cost.prompt_token_seconds() * load.prompt_cost
        tokens = (rest.compute / max(steps, 1.0) - decodes) / token
        running = load.running * kv_tokens / load.kv_tokens if load.kv_tokens > 0 else 0.0
        return FullStep(0.0 if math.isnan(tokens) else tokens, running, kv_tokens)

    def enough(self, full: FullStep) -> float:
        """Return the smallest part of ``full`` in which a token costs no more; 1 if all is worth
        having. No part has more prompt tokens than a step computes at most."""
        most = self._most(full)
        whole = max(full.prompt_tokens, 0.0) + max(full.decodes, 1.0)
        sizes = sorted({_whole_tiles(most * whole * part) for part in _PARTS})
        seconds = [self._seconds(full, size / whole) / size for size in sizes]
        least = min(seconds) * (1 + _ALIKE)
        size = next(s for s, time in zip(sizes, seconds, strict=True) if time <= least)
        return most if size == sizes[-1] else size / whole

    def slot_price(self, full: FullStep) -> float:
        """Return what a KV slot earns in a step, over what it costs to compute its token again.

        Where throughput grows with memory to the power e, a slot of M is worth e / M of the time
        of a step. Where prompts alone fill the steps, none is.
        """
        if self._most(full) < 1:
            return 0.0
        one, less = self._seconds(full, 1.0), self._seconds(full, _LESS)
        worth = min(max(1 - math.log(one / less) / math.log(1 / _LESS), 0.0), 1.0)
        tokens = _prompt_tokens(full, 1.0)
        more = int(_MORE * tokens) + _AT_LEAST
        larger = self.steps(tokens + more, int(full.decodes), full.kv_tokens)
        token = max((larger - one) / more, _CHEAP * self.cost.prompt_token_seconds())
        return worth * one / full.kv_tokens / token

    def _most(self, full: FullStep) -> float:
        """The largest part of ``full`` that a step computes, up to 1."""
        return min(self.max_tokens / max(full.prompt_tokens, 1.0), 1.0)

    def _seconds(self, full: FullStep, part: float) -> float:
        decodes = max(round(full.decodes * part), 1)
        return self.steps(_prompt_tokens(full, part), decodes, full.kv_tokens * part)


def _whole_tiles(tokens: float) -> int:
    """``tokens`` of a step, rounded down to multiples as tiles of kernels are."""
    tile = _TILE if tokens >= _TILE else _TILE // 4
    return max(int(tokens) // tile, 1) * tile


def _prompt_tokens(full: FullStep, part: float) -> int:
    return round(max(full.prompt_tokens, 0.0) * part)
