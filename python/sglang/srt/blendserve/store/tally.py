"""What a batch has got done: requests and tokens."""

from __future__ import annotations

from typing import NamedTuple


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
        """Return the sum of this tally and ``other``, field by field."""
        return Tally(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: Tally) -> Tally:
        """Return this tally less ``other``, field by field."""
        return Tally(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))
