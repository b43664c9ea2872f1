"""What latency targets of online requests leave of a step to offline ones.

An online request feels offline work in two ways. It arrives while a step runs and has to wait for
its end: that is added to its time to first token (TTFT). And it decodes in steps that others
decode in as well: that is its time per output token (TPOT). Both are bounded by the time that a
step takes, so the targets become a bound on it, and what online requests leave of that bound is
filled: first with offline requests that decode, then with prompt tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from sglang.srt.blendserve.cost.step_times import StepLoad, StepTimes
from sglang.srt.blendserve.latencies import LatencyTargets

_USED = 0.9
"""Part of what the targets allow that is used: steps are predicted, and they vary. Unproven."""

_QUIET_STEPS, _QUIET_TARGETS = 40.0, 2.0
"""While no online request is expected, a step computes prompts for so many times its fixed cost: a
longer one would make the batch faster by less than 2.5 %. The first online request after a quiet
time may have to wait for all of it, so it takes no more than so many times the target for the first
token. On two CPU cores, where a step's fixed cost is 40 ms, one chat in twenty waited 2 s."""

_LEAST_PREFILL = 32
"""Fewest prompt tokens that are worth computing in a step. Unproven."""


class OnlineLoad(NamedTuple):
    """The online requests of one step."""

    prefill: float
    """Compute of their prompts that wait for this step, seconds by the cost model."""
    decodes: int
    """How many of them decode."""
    kv_tokens: float
    """KV tokens that these read."""
    usual_prefill: float
    """Compute of the prompt of one that may come, seconds by the cost model."""
    usual_tokens: int = 1
    """Tokens of that prompt."""
    prompt_tokens: int = 0
    """Tokens of the prompts that wait for this step."""
    waited: float = 0.0
    """How long those whose prompts wait may have waited already, seconds."""


def quiet_prefill(
    targets: LatencyTargets, times: StepTimes, usual: StepLoad, context: float
) -> int | None:
    """Return how many prompt tokens a step computes at most while nobody online is expected.

    Args:
        targets: those that would count.
        times: of the engine's steps.
        usual: the step that computes the prompt of one that may come.
        context: tokens before those that would be computed.

    None where there are no targets.
    """
    first = times.seconds(usual)
    wait = targets.ttft.over(first) - first
    if wait == math.inf:
        return None
    quiet = min(_QUIET_STEPS * times.seconds(StepLoad()), _QUIET_TARGETS * (first + wait))
    seconds = max(_USED * wait, quiet)
    return max(times.prefill_tokens(seconds, context), _LEAST_PREFILL)


class Allowance:
    """How many offline requests may decode in a step, and how many prompt tokens it may have."""

    def __init__(self, targets: LatencyTargets, times: StepTimes, load: OnlineLoad) -> None:
        self._times = times
        self._online = StepLoad(load.prefill, load.decodes, load.kv_tokens, load.prompt_tokens)
        own = self._own = times.seconds(self._online)
        first = times.seconds(StepLoad(load.usual_prefill, prompt_tokens=load.usual_tokens))
        wait = _USED * max(targets.ttft.over(first) - first, 0.0)
        self.seconds = wait
        """How long the step may take."""
        if load.decodes:
            decode = times.seconds(StepLoad(0.0, load.decodes, load.kv_tokens))
            self.seconds = min(wait, _USED * targets.tpot.over(decode))
        if load.prefill:
            # Others decode on in the step that computes prompts of online requests.
            left = wait - load.waited
            if load.decodes:
                left = min(left, self.seconds - decode)
            self.seconds = own + max(left, 0.0)

    @property
    def left(self) -> float:
        """Seconds of the step that are left to offline requests."""
        return max(self.seconds - self._own, 0.0)

    def used(self, step: StepLoad) -> float:
        """Return how many seconds of ``step``, all of it, offline requests are expected to take."""
        return max(self._times.seconds(step) - self._own, 0.0)

    def decodes(self, kv_tokens: Sequence[float]) -> int:
        """Return how many offline requests may decode, of those that read ``kv_tokens`` each.

        One may whatever the targets: no batch stands still.
        """
        if self.seconds == math.inf:
            return len(kv_tokens)
        read = [0.0, *accumulate(kv_tokens)]

        def fits(count: int) -> bool:
            return self._times.seconds(self._beside(count, read[count])) <= self.seconds

        most = len(kv_tokens)
        if not most or fits(most):
            return most
        least = 1
        while most - least > 1:  # the first fits, or may go all the same; the last does not
            middle = (least + most) // 2
            least, most = (middle, most) if fits(middle) else (least, middle)
        return least

    def prefill(self, decodes: int, kv_tokens: float, context: float) -> int:
        """Return how many prompt tokens of offline requests the step may compute.

        Args:
            decodes: offline requests that decode.
            kv_tokens: what these read.
            context: tokens before those that would be computed.

        Where no offline request decodes some may be computed whatever the targets.
        """
        least = 0 if decodes else _LEAST_PREFILL
        step = self._beside(decodes, kv_tokens)
        left = self.seconds - self._times.seconds(step)
        tokens = self._times.prefill_tokens(left, context)
        if tokens < _LEAST_PREFILL or left == math.inf:
            return max(tokens, least) if left == math.inf else least
        # Steps with prompts may be another kind.
        added = self._times.prefill_seconds(tokens, context)
        with_prompts = step._replace(
            prefill=step.prefill + added, prompt_tokens=step.prompt_tokens + tokens
        )
        over = self._times.seconds(with_prompts) / self.seconds
        tokens = int(tokens / max(over, 1.0))
        return tokens if tokens >= _LEAST_PREFILL else least

    def _beside(self, decodes: int, kv_tokens: float) -> StepLoad:
        online = self._online
        return online._replace(
            decodes=online.decodes + decodes, kv_tokens=online.kv_tokens + kv_tokens
        )
