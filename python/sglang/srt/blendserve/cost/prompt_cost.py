"""What a prompt token costs beside its matrix products: attention to what stands before it, and
the logits at a prompt's end.

A pace asks for it before the requests of a step are chosen, so it is that of the prompts computed
lately. Prompts of a few hundred tokens cost some per cent more than their matrix products; a step
that is filled up by these alone computes longer than its memory traffic takes, on and on.
"""

from __future__ import annotations

from sglang.srt.blendserve.cost.model_spec import ModelSpec


class PromptCost:
    """Compute of recent prompts over that of as many tokens that attend to nothing."""

    def __init__(self, model: ModelSpec, kept: float) -> None:
        """``kept``: part of what was seen that is kept from step to step."""
        self._kept = kept
        self._token = 2.0 * model.prefill_parameters
        self._score = 4.0 * model.layers * model.attention_width
        self._head = 2.0 * model.head_parameters
        self._bare = self._whole = 0.0

    @property
    def factor(self) -> float:
        """Compute of the prompts seen lately over that of their matrix products alone, about 1 or
        more; 1 before any prompt was seen."""
        return self._whole / self._bare if self._bare else 1.0

    def note(self, tokens: int, context: int, *, ends: bool) -> None:
        """Count ``tokens`` of a prompt, computed behind ``context`` cached ones.

        ``ends``: whether the prompt's last token is among them, which needs logits.
        """
        self._bare += tokens * (self._token + 0.5 * self._score)
        self._whole += tokens * (self._token + self._score * (context + tokens / 2))
        if ends:
            self._whole += self._head

    def end_step(self) -> None:
        """All prompts of a step were noted."""
        self._bare *= self._kept
        self._whole *= self._kept
