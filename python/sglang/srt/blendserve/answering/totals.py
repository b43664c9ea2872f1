"""What the lines of one job come to: requests, tokens, seconds, prompts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.answering.observer import Observation
from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.store.tally import Tally

MAX_KEPT_TOKENS = 50_000_000
"""Most prompt tokens kept for the figures that need the prompts (4 bytes each)."""


class KeptPrompt(NamedTuple):
    """One prompt that was answered.

    Attributes:
        tokens: its ids, int32, shape (prompt tokens,).
        output_lengths: tokens of each of its answers.
        max_tokens: most tokens an answer may have, None if only the context limits it.
        known_length: whether each answer has ``max_tokens`` tokens exactly.
        namespace: it shares prefixes with prompts of the same namespace only.
    """

    tokens: NDArray[np.int32]
    output_lengths: list[int]
    max_tokens: int | None
    known_length: bool
    namespace: str


def tally_of(response: Response, seen: Observation | None) -> Tally:
    """Return one request as it counts in sums; without an observation it cost no tokens."""
    failed = response.status_code >= 400
    usage = response.body.get("usage") or {}
    seen = seen or Observation()
    return Tally(
        completed=int(not failed),
        failed=int(failed),
        input_tokens=seen.prompt_tokens,
        cached_tokens=seen.cached_tokens,
        output_tokens=seen.completion_tokens,
        reasoning_tokens=_reasoning_tokens(usage),
    )


@dataclass(slots=True)
class JobTotals:
    """Sums over the lines that got their result since the job was started or resumed.

    Attributes:
        tally: requests and tokens.
        retractions: times that a sequence was thrown out of the KV cache and started over.
        prompts: one entry a prompt that was answered, if the engine keeps prompts; None once there
            are more than `MAX_KEPT_TOKENS` tokens of them.
    """

    tally: Tally = field(default_factory=Tally)
    retractions: int = 0
    prompts: list[KeptPrompt] | None = field(default_factory=list)
    _kept: int = 0
    _first: float | None = None
    _last: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first request sent to the last answer, 0 before there is one."""
        return 0.0 if self._first is None else max(0.0, self._last - self._first)

    def begin(self) -> None:
        """A request is sent."""
        if self._first is None:
            self._first = time.perf_counter()

    def add(self, tally: Tally, seen: Observation | None = None) -> None:
        """Count one line, and what was observed of it if the engine has answered it."""
        self.tally = self.tally.plus(tally)
        if seen is None:
            return
        self._last = time.perf_counter()
        self.retractions += seen.retractions
        self._keep_prompts(seen)

    def _keep_prompts(self, seen: Observation) -> None:
        # A line that was refused has prompts, maybe, but no answers.
        if not seen.output_lengths or not seen.prompts or self.prompts is None:
            return
        self._kept += sum(ids.size for ids in seen.prompts)
        if self._kept > MAX_KEPT_TOKENS:
            self.prompts = None
            return
        choices = len(seen.output_lengths) // len(seen.prompts)
        for index, ids in enumerate(seen.prompts):
            lengths = seen.output_lengths[index * choices : (index + 1) * choices]
            self.prompts.append(
                KeptPrompt(ids, lengths, seen.max_tokens, seen.known_length, seen.namespace)
            )


def _reasoning_tokens(usage: dict[str, Any]) -> int:
    """The reasoning tokens of an answer, a response's among its details."""
    details = usage.get("output_tokens_details") or {}
    return usage.get("reasoning_tokens") or details.get("reasoning_tokens") or 0
