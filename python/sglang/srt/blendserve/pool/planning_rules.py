"""When a pool plans, over what, and which of its requests run first to learn from."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE = 0.01
"""Share of the requests that run first, to learn output lengths from (paper section 5.1)."""


@dataclass(frozen=True, slots=True)
class PlanningRules:
    """What a pool goes by when it plans; the defaults are those of the runtime."""

    sample: float = SAMPLE
    """Share of the requests of unknown length that run first."""
    least_sample: int = 4
    """A sample of fewer requests is not worth leaving the plan's order for."""
    growth: float = 0.25
    """Plan again once this share of the planned requests that wait has newly arrived, or a fourth
    of it of all that were planned: the total planning time then stays proportional to the last
    plan's."""
    learn_growth: float = 0.5
    """Predict lengths anew when as many more have finished, or as many more passes were made."""
    learn_least: int = 32
    """Fewest requests to finish, or passes to be made, before lengths are predicted anew."""
    drift: float = 0.1
    """Order anew when predictions have moved the KV reads of what waits by this share."""
    least_ended: int = 4096
    """Ended requests that are kept, at least, for what their prompts tell about lengths."""
    kept_ended: int = 128
    """Ended requests that stay of each kind (same ``max_tokens``, in half octaves) when the others
    are forgotten: what runs is judged beside them."""
    turns: float = 2.0
    """How many times the starts that its job explains a request may be overtaken (`patience`).
    With less, a steady stream of arrivals is served nearly in the order of arrival."""
    least_explained: int = 64
    """Fewest starts that a job explains: what a step or two of the engine takes."""
    arrival_order: bool = False
    """Scan requests as they arrived instead of as planned (an ablation)."""
