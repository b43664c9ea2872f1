"""The pace of an engine that runs prefill and decode on two lanes."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.blendserve.policy.pace import PrefillBudget, Rest, StepLoad


@dataclass(frozen=True, slots=True)
class WholeChunks:
    """A full chunk of prompt tokens in every prefill batch.

    The prefill lane holds up no decode, so its chunks only need to be large enough for efficient
    matrix products. What the lanes get done beside each other is up to the division of the SMs.
    """

    chunk: int
    """Prompt tokens of one chunk."""

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """Return a full chunk for either side of the scan."""
        return PrefillBudget(self.chunk, self.chunk)
