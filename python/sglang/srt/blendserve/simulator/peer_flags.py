"""Flags of SGLang that are tried for each peer, of which the best counts."""

from __future__ import annotations

from typing import NamedTuple


class PeerFlags(NamedTuple):
    """Settings of SGLang that are tried for each peer."""

    chunks: list[int]
    conservativeness: list[float]

    @classmethod
    def parse(cls, chunks: str, conservativeness: str) -> PeerFlags:
        """Read comma-separated lists. Raises ValueError naming the flag and what is wrong."""
        try:
            sizes = [int(chunk) for chunk in chunks.split(",")]
        except ValueError:
            raise ValueError(f"--chunks {chunks}: give whole numbers, as 512,2048") from None
        try:
            shares = [float(share) for share in conservativeness.split(",")]
        except ValueError:
            raise ValueError(
                f"--conservativeness {conservativeness}: give numbers, as 1,0.1"
            ) from None
        if min(sizes) < 1:
            raise ValueError(f"--chunks {chunks}: a chunk has at least one token")
        if not min(shares) > 0:
            raise ValueError(f"--conservativeness {conservativeness}: must be above 0")
        return cls(sizes, shares)
