"""Parts of our policies that a simulation can switch."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.blendserve.pool.request_pool import SAMPLE

BLEND_CHUNK = 8192
"""Largest prefill of a step for policies that set their own pace, tokens."""


@dataclass(frozen=True, slots=True)
class BlendOptions:
    """Parts of the policy that ablations switch; the defaults are the policy as it is."""

    pace: str = "auto"
    """A pace by name; ``auto``: that of an engine that overlaps or does not."""
    keep_sharing: float = 0.99
    sample: float = SAMPLE
    fill: float = 1.0
    backfill: int = 8
    chunk: int = BLEND_CHUNK
    """Largest prefill of a step, tokens."""
    told: str = ""
    """Lengths the policy is told: none, ``true`` ones, ``wrong`` ones (half or double at random)
    or the ``mean`` of all."""
    arrival_order: bool = False
    """Take requests as they arrived instead of as planned."""
    reserve_all: bool = False
    """Admit by the sum of all predicted lengths instead of the peak over time."""
    lru_eviction: bool = False
    """Evict the least recently used instead of what the plan needs last."""
