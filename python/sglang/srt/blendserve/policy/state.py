"""What a step starts from and what is chosen for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sglang.srt.blendserve.pool.pool_request import PoolRequest


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine can say before a step."""

    running: int
    """Requests that decode in the step, offline and online."""
    kv_tokens: int
    """KV tokens that the decoding requests read."""
    used_slots: int
    """KV slots that cannot be had now: locked by requests in flight (shared prefixes once)."""
    free_requests: int
    """How many more requests the engine can run."""
    cached_tokens: Callable[[PoolRequest], int]
    """How many tokens of a request's prompt the prefix cache holds now."""
    online_growth: float = 0.0
    """KV tokens that online requests may still grow by."""
    chunk: PoolRequest | None = None
    """The offline request whose prompt is partly computed."""
    chunk_tokens: int = 0
    """Prompt tokens of `chunk` that are still to be computed."""
    most_prefill: int | None = None
    """Prompt tokens that the step may have beside online requests; None: any number."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What joins the next step."""

    requests: list[PoolRequest]
    """Requests that join, in the order in which they are to be prefilled."""
    prefill_tokens: int
    """Prompt tokens to compute, the rest of a partly computed prompt included."""
