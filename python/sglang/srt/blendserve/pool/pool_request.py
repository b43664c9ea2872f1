"""One offline request as the pool sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.scanner import Side

Tokens = NDArray[np.int32]


@dataclass(slots=True, eq=False)
class PoolRequest:
    """One offline request, from its arrival to its end."""

    rid: str
    prompt: Tokens
    """(p,) token ids."""
    max_tokens: int
    """Cap on the output, tokens; a cap, not a forecast."""
    known_length: bool = False
    """Whether the output is exactly ``max_tokens`` long (``ignore_eos``)."""
    job: str = ""
    job_requests: int = 0
    """Requests of the whole job, where it is known; not all of them need be in the pool."""
    namespace: str = ""
    """Requests of different namespaces share no prefix (adapters, cache salts)."""
    prompt_start: int = -1
    """Where ``prompt`` begins in the array that it is a slice of; -1: not known."""
    payload: Any = None
    """The engine's own object for this request."""

    index: int = -1
    """Place in the pool's arrays."""
    side: Side = Side.COMPUTE
    """The side of the scan that the request was taken from, or the memory-bound one once it has far
    outlived its expected length; kept through retraction."""
    generated: int = 0
    """Output tokens so far."""
    held_tokens: int = 0
    """KV tokens besides ``generated`` that are freed when it ends: the part of its prompt that it
    did not find cached."""
    expected_tokens: float = 0.0
    """Output tokens that the request was expected to have when it started."""
    arrived_at: int = 0
    """Starts that the pool had made when the request arrived (`patience`)."""
    explained: int = 0
    """Most starts that its job has explained since then; 0 before it is in a plan."""


def shared_tokens(one: Tokens, other: Tokens) -> int:
    """Length of the common prefix of two prompts, tokens."""
    both = min(one.size, other.size)
    differ = one[:both] != other[:both]
    first = int(differ.argmax()) if both else 0
    return first if both and differ[first] else both
