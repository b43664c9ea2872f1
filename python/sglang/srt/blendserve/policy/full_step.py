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
from sglang.srt.blendserve.policy.pace import Rest, StepLoad, rise

FULL = 0.95
"""Part of the KV cache that is taken to be read in each step that is left. Unproven."""

_ALIKE = 0.002
"""Part of the time of a token up to which more of it counts as no more. Unproven."""

_TILE = 128
"""Tokens of a step that are compared: multiples, as tiles of kernels are; of a fourth of it in
smaller steps."""

_LEAST, _SIZES = 0.5, 16
"""Steps of so many sizes above the least, as a part of the full one, tell what steps share: a line
through all of them, since tiles of kernels are jumps between any two. Unproven."""

_AGAIN = 1024
"""Prompt tokens by which a step is made larger to see what one costs. Unproven."""

_CHEAP = 0.25
"""Least cost of a prompt token, as a part of its compute alone. Unproven."""

_FILLED = 0.8
"""Part of the memory that prompts need at most, in steps as large as they may be, for a slot to
earn nothing. Unproven."""

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
    alone: bool = False
    """Whether prompts are computed in steps of their own, while decodes wait."""

    def of(self, load: StepLoad, rest: Rest) -> FullStep:
        """Return the step in which ``rest`` is computed if memory is full to its end.

        ``load``: the step as it is, whose decodes are taken to be like those that come. Its compute
        is taken off what is left for each step, which is a little too little while few run.
        """
        slots = FULL * self.kv_slots
        steps = rest.memory / float(self.cost.kv_read_seconds(slots))
        compute = float(self.cost.decode_compute_seconds(load.running, load.kv_tokens))
        token = self.cost.prompt_token_seconds() * load.prompt_cost
        tokens = (rest.compute / max(steps, 1.0) - compute) / token
        # Where prefixes are shared, more is read than there are slots.
        kv_tokens = max(slots, load.kv_tokens)
        context = load.context or load.kv_tokens / max(load.running, 1)
        decodes = kv_tokens / context if context > 0 else 0.0
        return FullStep(0.0 if math.isnan(tokens) else tokens, decodes, kv_tokens)

    def enough(self, full: FullStep) -> float:
        """Return the smallest part of ``full`` in which a token costs no more; 1 if all is worth
        having. No part that is looked at has more prompt tokens than a step may have."""
        most, whole = self._most(full), _tokens(full)
        sizes = sorted({_whole_tiles(most * whole * part) for part in _PARTS})
        seconds = [self._seconds(full, size / whole) / size for size in sizes]
        least = min(seconds) * (1 + _ALIKE)
        size = next(s for s, time in zip(sizes, seconds, strict=True) if time <= least)
        return 1.0 if size == sizes[-1] else size / whole

    def slot_price(self, full: FullStep) -> float:
        """Return what a KV slot earns in a step, over what it costs to compute its token again.

        A step takes a time that all its tokens share, and one that grows with them. More memory
        saves steps and the first of these, so a slot of M is worth an M-th of it. Where prompts
        alone fill the steps, none is worth anything.
        """
        sizes = [_LEAST + (1 - _LEAST) * place / _SIZES for place in range(_SIZES + 1)]
        shared, growing = _line(sizes, [self._seconds(full, size) for size in sizes])
        worth = min(max(shared, 0.0), shared + growing)
        worth *= rise(self._most(full), _FILLED, 1 - _FILLED)
        return worth / full.kv_tokens / self._again(full)

    def _again(self, full: FullStep) -> float:
        """Seconds for each token that is computed again."""
        if self.alone:
            return self.steps(self.max_tokens, 1, 1.0) / self.max_tokens
        more = self._seconds(full, 1.0, _AGAIN) - self._seconds(full, 1.0)
        return max(more / _AGAIN, _CHEAP * self.cost.prompt_token_seconds())

    def _most(self, full: FullStep) -> float:
        """The largest part of ``full`` that a step computes, up to 1."""
        return min(self.max_tokens / max(full.prompt_tokens, 1.0), 1.0)

    def _seconds(self, full: FullStep, part: float, more: int = 0) -> float:
        decodes = max(round(full.decodes * part), 1)
        tokens = round(max(full.prompt_tokens, 0.0) * part) + more
        return self.steps(tokens, decodes, full.kv_tokens * part)


def _line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Return the line of least squares through points: its value at 0, and its slope."""
    middle, height = sum(x) / len(x), sum(y) / len(y)
    square = sum((a - middle) ** 2 for a in x)
    slope = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / square
    return height - slope * middle, slope


def _tokens(full: FullStep) -> float:
    return max(full.prompt_tokens, 0.0) + max(full.decodes, 1.0)


def _whole_tiles(tokens: float) -> float:
    """``tokens`` of a step, rounded down to multiples as tiles of kernels are; below the smallest
    tile, in which weights are loaded for few, as they are."""
    tile = _TILE if tokens >= _TILE else _TILE // 4
    return tokens if tokens < tile else tokens // tile * tile
