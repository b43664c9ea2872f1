"""The online requests of an engine: who is there, whether more may come, what they will need."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.step_times import StepLoad
from sglang.srt.blendserve.policy.latency_targets import OnlineLoad
from sglang.srt.blendserve.runtime.offline_request import offline_request

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

_HEALTH_CHECK = "HEALTH_CHECK"
"""What the ids of SGLang's own health checks begin with: nobody waits for their tokens."""

_GAPS = 3.0
"""Mean gaps between two arrivals after the last one for which the next is expected: of arrivals at
random, 95 in 100 come sooner."""

_LEAST_HOLD, _FIRST_HOLD, _MOST_HOLD = 0.25, 2.0, 30.0
"""Seconds for which it is expected at least, after the very first one, and at most."""

_WEIGHT = 0.2
"""Weight of the latest request in what is usual. Unproven."""

_HALF_LIFE = 30.0
"""Seconds after which half of the room that online requests needed at once, and no longer do, is
given to offline ones. Unproven."""

_MOST_GROWTH = 4096
"""Output tokens that SGLang makes sure of when it admits a request, at most."""

_REMEMBERED = 512
"""Requests whose latencies are remembered."""


class Room(NamedTuple):
    """What requests take of the engine."""

    requests: float = 0.0
    kv_tokens: float = 0.0


class _Seen:
    """An online request that has not ended."""

    __slots__ = ("first", "first_token", "prefill", "prompt", "tokens")

    def __init__(self, now: float, prompt: int = 0, prefill: float = 0.0) -> None:
        self.first = now
        self.prompt, self.prefill = prompt, prefill
        self.first_token: float | None = None
        self.tokens = 0


class OnlineRequests:
    """Follows the online requests from pass to pass of the scheduler."""

    def __init__(self, cost: CostModel, cached_tokens: Callable[[Req], int]) -> None:
        """``cached_tokens``: how many tokens of a request that waits the prefix cache holds."""
        self._cost = cost
        self._cached_tokens = cached_tokens
        self.ever = False
        """Whether there has been one."""
        self.expected = False
        """Whether one is there, or may come any moment."""
        self.waiting: list[Req] = []
        """Online requests whose prompts are not computed, in their order."""
        self.decoding: list[Req] = []
        self.reserve = Room()
        """What those that may come need beyond what is there."""
        self.ttft: deque[float] = deque(maxlen=_REMEMBERED)
        """Seconds from a request's first pass to the pass that has its first token, the latest."""
        self.tpot: deque[float] = deque(maxlen=_REMEMBERED)
        """Seconds per token after the first, of the latest that have ended."""
        self.ended = 0
        self._there: dict[str, _Seen] = {}
        self.now = 0.0
        """When it was last looked."""
        self._last_there = self._last_came = -np.inf
        self._gap: float | None = None
        self._usual_prefill: float | None = None
        self._usual_tokens = 1
        self._peak = Room()

    @staticmethod
    def of(reqs: Iterable[Req]) -> list[Req]:
        """Return those of ``reqs`` that somebody waits for."""
        return [
            req
            for req in reqs
            if offline_request(req) is None and not req.rid.startswith(_HEALTH_CHECK)
        ]

    def look(
        self,
        now: float,
        waiting: list[Req],
        decoding: list[Req],
        computing: Iterable[Req] = (),
    ) -> None:
        """Take in who is there; to be called in every pass.

        Args:
            now: seconds from any beginning, the same on all ranks.
            waiting: online requests whose prompts are not computed, or only partly.
            decoding: online requests that decode.
            computing: online requests whose prompts are computed on another lane, or were.
        """
        passed, self.now = now - self.now, now
        self.waiting, self.decoding = waiting, decoding
        computing = [*computing]
        if waiting or decoding or computing:
            self.ever, self._last_there = True, now
        if not self.ever:
            return
        for req in waiting:
            if req.rid not in self._there:
                self._came(req)
        self._follow(decoding, computing)
        self.expected = now - self._last_there <= self._hold
        self._keep_room(passed)

    def load(self, *, prefill: bool, last_step: float) -> OnlineLoad:
        """Return the online side of the next step.

        Args:
            prefill: whether the prompts that wait are computed in it.
            last_step: seconds that the last step took: who has come meanwhile may have waited for
                all of it.
        """
        waits, waited, tokens = 0.0, 0.0, 0
        if prefill and self.waiting:
            seen = [self._there[req.rid] for req in self.waiting]
            waits = sum(one.prefill for one in seen)
            tokens = sum(one.prompt for one in seen)
            waited = last_step + self.now - self._there[self.waiting[0].rid].first
        kv_tokens = sum(len(r.origin_input_ids) + len(r.output_ids) for r in self.decoding)
        return OnlineLoad(
            prefill=waits,
            decodes=len(self.decoding),
            kv_tokens=kv_tokens,
            usual_prefill=self._usual,
            usual_tokens=self._usual_tokens,
            prompt_tokens=tokens,
            waited=waited,
        )

    def usual_step(self, *, prefill: bool) -> StepLoad:
        """Return the step that an online request is alone in: its prompt's, or one of its decodes.

        The load is that of those that came last.
        """
        if prefill:
            return StepLoad(self._usual, prompt_tokens=self._usual_tokens)
        reads = sum(len(r.origin_input_ids) + len(r.output_ids) for r in self.decoding)
        return StepLoad(decodes=max(len(self.decoding), 1), kv_tokens=reads)

    def figures(self) -> dict[str, Any]:
        """Return requests and latencies (seconds; None before any), for who looks from outside."""
        return {
            "ended": self.ended,
            "running": len(self.decoding),
            "waiting": len(self.waiting),
            **{f"ttft_p{q}": _quantile(self.ttft, q) for q in (50, 95)},
            **{f"tpot_p{q}": _quantile(self.tpot, q) for q in (50, 95)},
        }

    @property
    def _usual(self) -> float:
        """Compute of the prompt of one that may come, seconds by the cost model."""
        if self._usual_prefill is None:
            return float(self._cost.prefill_seconds(1))
        return self._usual_prefill

    @property
    def _hold(self) -> float:
        if self._gap is None:
            return _FIRST_HOLD
        return min(max(_GAPS * self._gap, _LEAST_HOLD), _MOST_HOLD)

    def _came(self, req: Req) -> None:
        length = len(req.origin_input_ids) + len(req.output_ids)
        cached = min(self._cached_tokens(req), length - 1)
        prefill = float(self._cost.prefill_seconds(length - cached, cached))
        self._there[req.rid] = _Seen(self.now, length - cached, prefill)
        self._usual_tokens = length - cached
        usual = self._usual_prefill
        self._usual_prefill = prefill if usual is None else usual + _WEIGHT * (prefill - usual)
        since = self.now - self._last_came
        if 0 < since < np.inf:  # those that come together are one arrival
            gap = min(since, _MOST_HOLD)
            self._gap = gap if self._gap is None else self._gap + _WEIGHT * (gap - self._gap)
        self._last_came = self.now

    def _follow(self, decoding: list[Req], computing: list[Req]) -> None:
        """Note first tokens, and who has ended."""
        for req in decoding:
            seen = self._there.setdefault(req.rid, _Seen(self.now))
            seen.tokens = len(req.output_ids)
            if seen.tokens and seen.first_token is None:
                seen.first_token = self.now
                self.ttft.append(self.now - seen.first)
        there = {req.rid for req in (*self.waiting, *computing, *decoding)}
        for rid in [rid for rid in self._there if rid not in there]:
            self._ended(self._there.pop(rid))

    def _ended(self, seen: _Seen) -> None:
        self.ended += 1
        if seen.first_token is None:  # with its first token, or without any
            self.ttft.append(self.now - seen.first)
        elif seen.tokens:
            self.tpot.append((self.now - seen.first_token) / seen.tokens)

    def _keep_room(self, passed: float) -> None:
        """Let the reserve follow the most that was there at once."""
        there = [*self.waiting, *self.decoding]
        now = Room(len(there), sum(most_kv_tokens(req) for req in there))
        kept = 0.5 ** (max(passed, 0.0) / _HALF_LIFE)
        self._peak = Room(*(max(n, kept * peak) for n, peak in zip(now, self._peak, strict=True)))
        self.reserve = Room()
        if self.expected:
            self.reserve = Room(*(peak - n for n, peak in zip(now, self._peak, strict=True)))


def most_kv_tokens(req: Req) -> int:
    """KV tokens that SGLang makes sure of for ``req``."""
    most = req.sampling_params.max_new_tokens
    return len(req.origin_input_ids) + min(_MOST_GROWTH if most is None else most, _MOST_GROWTH)


def _quantile(seconds: deque[float], per_cent: int) -> float | None:
    return float(np.percentile(seconds, per_cent)) if seconds else None
