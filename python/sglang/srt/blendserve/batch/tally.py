"""What a batch has got done: requests and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Tally(NamedTuple):
    """Sums over result lines: requests by outcome, tokens as the engine counts them.

    ``input_tokens`` includes ``cached_tokens`` (found in the prefix cache), ``output_tokens``
    includes ``reasoning_tokens``.
    """

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def plus(self, other: Tally) -> Tally:
        """Return the sum."""
        return Tally(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def tally_of(succeeded: bool, body: Mapping[str, Any] | None) -> Tally:
    """Return the tally of one result line with the endpoint's answer ``body``.

    Token counts come from the body's ``usage`` object; a field that is missing or null counts 0
    (embeddings have no output tokens, and details are given only when asked for).
    """
    usage = (body or {}).get("usage") or {}
    return Tally(
        completed=int(succeeded),
        failed=int(not succeeded),
        input_tokens=int(usage.get("prompt_tokens") or 0),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        output_tokens=int(usage.get("completion_tokens") or 0),
        reasoning_tokens=int(usage.get("reasoning_tokens") or 0),
    )
