"""What the answered lines of a run add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.answering.observer import Observation

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


@dataclass(slots=True)
class Accounts:
    """Sums over the lines answered in this run, and their prompts.

    Attributes:
        input_tokens, output_tokens, cached_tokens, retractions: as in `Observation`.
        prompts: one entry a prompt; None once there are more than `MAX_KEPT_TOKENS` of them.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    retractions: int = 0
    prompts: list[KeptPrompt] | None = field(default_factory=list)
    _kept: int = 0

    def add(self, seen: Observation) -> None:
        """Count one line."""
        self.input_tokens += seen.prompt_tokens
        self.output_tokens += seen.completion_tokens
        self.cached_tokens += seen.cached_tokens
        self.retractions += seen.retractions
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
